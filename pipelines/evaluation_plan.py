"""What an evaluation asks: which rows, which prompts, which places. Torch-free."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from studio.bases import EMBEDDED, BaseSource
from studio.concepts import Concept, placeholders, whole_word
from studio.errors import UsageError
from studio.pipelines.methods import METHODS, Method
from studio.pipelines.protocols import columns, dreambooth, in_a_row
from studio.pipelines.settings import GenerateSettings
from studio.regions import Layout

if TYPE_CHECKING:
    from studio.images import Picture

SCENES = ("at night, flat style", "on grass, outline style", "on sand, flat style", "in the sky, outline style")
PROTOCOLS = ("scenes", "dreambooth", "captions", "composlora")
UNRELATED = (
    "a red car on grass",
    "a white house at night",
    "a tree on sand",
    "a green fish",
    "a yellow star in the sky",
)
_SEEDS_APART = 1000  # so that two prompts have no seed in common


@dataclass(frozen=True)
class Case:
    """One row's way to draw one prompt, in which concepts stand as `<name>`; `settings` has the first of `count` seeds.

    Without a method all adapters simply act, also where no word calls them. `places` is where each concept belongs, for
    the scores; the method draws with them if `told`. A `counterpart` is what each picture is set beside: a file, or the
    picture that another case draws from the same seed.
    """

    row: str
    settings: GenerateSettings
    concepts: tuple[Concept, ...]
    method: Method | None
    places: Layout | None = None
    told: bool = False
    counterpart: "Path | Case | None" = None

    @property
    def names(self) -> list[str]:
        """Of the concepts that the prompt calls."""
        called = placeholders(self.settings.prompt)
        return [one.name for one in self.concepts if one.name in called]

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
    """What is asked of one concept; raises UsageError for a protocol that is about something else."""
    if protocol == "dreambooth":
        return dreambooth(concept)
    if protocol != "scenes" or source.name != EMBEDDED:
        raise UsageError(f"The protocol {protocol!r} does not ask this.", "Use --protocol dreambooth, or give prompts.")
    return [f"a <{concept.name}> {scene}" for scene in SCENES]


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


def by_captions(concept: Concept, pictures: "Sequence[Picture]", settings: GenerateSettings) -> list[Case]:
    """What peft's comparison of methods asks (its method_comparison/image-gen): every picture drawn from its caption
    and set beside it, and pictures that are none of the concept's beside what the base makes of them."""
    cases = []
    for n, one in enumerate(pictures):
        asked = _numbered(settings, called(concept, one.caption), n)
        cases.append(Case(concept.name, asked, (concept,), METHODS["merge"], counterpart=one.path))
    for n, prompt in enumerate(UNRELATED, start=len(pictures)):
        asked = _numbered(settings, prompt, n)
        cases.append(Case(concept.name, asked, (concept,), None, counterpart=Case("", asked, (), None)))
    return cases


def called(concept: Concept, caption: str | None) -> str:
    """`caption` with the concept called by name in place of its class word, or before all where it lacks that."""
    own = f"<{concept.name}>"
    if caption is None:
        return f"a {own}"
    phrase = rf"(?:{whole_word(concept.trigger)}\s+)?{whole_word(concept.class_word)}"
    marked, found = re.subn(phrase, lambda _: own, caption, count=1, flags=re.IGNORECASE)
    return marked if found else f"a {own}, {caption}"


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
    """A row for each method: each group in a row from left to right, the scenes taking turns. Raises UsageError for
    what a method cannot draw."""
    cases = []
    for method in methods:
        for n, group in enumerate(groups):
            names = [one.name for one in group]
            prompt = f"{in_a_row([f'a <{name}>' for name in names])} {scenes[n % len(scenes)]}"
            case = Case(method.name, _numbered(settings, prompt, n), group, method, columns(names))
            method.check(names, case.layout, settings.steps)
            cases.append(case)
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
            f"--together {size}, and the number of concepts is {len(concepts)}.",
            "Name more, or take 2 or more at a time.",
        )
    return list(combinations(concepts, size))


def _numbered(settings: GenerateSettings, prompt: str, number: int) -> GenerateSettings:
    return replace(settings, prompt=prompt, seed=settings.seed + _SEEDS_APART * number)
