"""What an evaluation asks: which rows, which prompts, which places. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from studio.bases import EMBEDDED, BaseSource
from studio.concepts import Concept, placeholders
from studio.errors import UsageError
from studio.pipelines.methods import METHODS, Method
from studio.pipelines.protocols import columns, dreambooth, in_a_row
from studio.pipelines.settings import GenerateSettings
from studio.regions import Layout

SCENES = ("at night, flat style", "on grass, outline style", "on sand, flat style", "in the sky, outline style")
PROTOCOLS = ("scenes", "dreambooth")
_SEEDS_APART = 1000  # so that two prompts have no seed in common


@dataclass(frozen=True)
class Case:
    """One row's way to draw one prompt, in which concepts stand as `<name>`; `settings` has the first of `count` seeds.

    Without a method all adapters simply act, also where no word calls them. `places` is where each concept belongs, for
    the scores; the method draws with them if `told`.
    """

    row: str
    settings: GenerateSettings
    concepts: tuple[Concept, ...]
    method: Method | None
    places: Layout | None = None
    told: bool = False

    @property
    def names(self) -> list[str]:
        """Of the concepts."""
        return [one.name for one in self.concepts]

    @property
    def seeds(self) -> list[int]:
        """One a picture."""
        return [self.settings.seed + n for n in range(self.settings.count)]

    @property
    def layout(self) -> Layout | None:
        """What the method is told."""
        needed = self.method is not None and self.method.boxes == "needs"
        return self.places if self.told or needed else None


def prompts_of(concept: Concept, protocol: str, source: BaseSource) -> list[str]:
    """What is asked of one concept."""
    if protocol == "scenes" and source.name == EMBEDDED:
        return [f"a <{concept.name}> {scene}" for scene in SCENES]
    return dreambooth(concept)


def read_prompts(file: Path) -> list[str]:
    """A prompt a line; empty ones and those that begin with # are none. Raises UsageError for a file without any."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Cannot read the prompts of {file}: {error}.", "Give a text file, a prompt a line."
        ) from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UsageError(f"{file} holds no prompt.", "Write one a line, with <NAME> where a concept belongs.")
    return found


def alone(concepts: Sequence[Concept], protocol: str, source: BaseSource, settings: GenerateSettings) -> list[Case]:
    """A row for each concept, which draws its prompts by itself."""
    return [
        Case(one.name, _numbered(settings, prompt, n), (one,), METHODS["merge"])
        for one in concepts
        for n, prompt in enumerate(prompts_of(one, protocol, source))
    ]


def over_time(
    concept: Concept, steps: Sequence[Concept], protocol: str, source: BaseSource, settings: GenerateSettings
) -> list[Case]:
    """A row for each of `steps`, the same concept as it was earlier, and one for it as it is."""
    return [
        replace(case, row=row.folder.name if row is not concept else f"{concept.name}, as it is", concepts=(row,))
        for row in (*steps, concept)
        for case in alone([replace(row, name=concept.name)], protocol, source, settings)
    ]


def side_by_side(
    groups: Sequence[tuple[Concept, ...]], scenes: Sequence[str], methods: Sequence[Method], settings: GenerateSettings
) -> list[Case]:
    """A row for each method: each group in a row from left to right, the scenes taking turns."""
    cases = []
    for method in methods:
        for n, group in enumerate(groups):
            names = [one.name for one in group]
            prompt = f"{in_a_row([f'a <{name}>' for name in names])} {scenes[n % len(scenes)]}"
            cases.append(Case(method.name, _numbered(settings, prompt, n), group, method, columns(names)))
    return cases


def as_told(
    prompts: Sequence[str],
    concepts: Sequence[Concept],
    methods: Sequence[Method],
    layout: Layout | None,
    settings: GenerateSettings,
) -> list[Case]:
    """A row for each method, and the prompts as they are given; raises UsageError for one that names no concept."""
    known = {one.name: one for one in concepts}
    cases = []
    for method in methods:
        for n, prompt in enumerate(prompts):
            names = placeholders(prompt)
            if not names:
                raise UsageError(f"The prompt {prompt!r} names no concept.", "Write <NAME> where one belongs.")
            chosen = tuple(known[name] for name in names)
            boxes = None if layout is None else Layout({k: v for k, v in layout.boxes.items() if k in names})
            told = boxes is not None and bool(boxes.boxes)
            case = Case(method.name, _numbered(settings, prompt, n), chosen, method, boxes if told else None, told)
            method.check(names, case.layout, settings.steps)
            cases.append(case)
    return cases


def groups_of(concepts: Sequence[Concept], size: int) -> list[tuple[Concept, ...]]:
    """All groups of `size`; raises UsageError where there are too few for one."""
    if not 2 <= size <= len(concepts):
        raise UsageError(
            f"--together {size}, and there are {len(concepts)} concepts.", "Name more, or take 2 or more at a time."
        )
    return list(combinations(concepts, size))


def _numbered(settings: GenerateSettings, prompt: str, number: int) -> GenerateSettings:
    return replace(settings, prompt=prompt, seed=settings.seed + _SEEDS_APART * number)
