"""The demo: two sample concepts are learned, drawn alone and together, and scored. It ends in a `Story`."""

import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from studio.bases import EMBEDDED, find_base
from studio.concepts import Concept, expand_prompt
from studio.datasets import sample_folder
from studio.events import Done, Emit, Event, Phase, Preview, Step, silent
from studio.home import Home
from studio.judge import Gallery, Judge
from studio.models import BaseModel, load_base
from studio.picturebook import BACKGROUND_WORDS, STYLE_WORDS
from studio.pipelines.compose import compose
from studio.pipelines.concept_bench import gallery_of
from studio.pipelines.decoding import through_vae
from studio.pipelines.generate import generate
from studio.pipelines.methods import DEFAULT_METHOD, find_method
from studio.pipelines.scores import Marks, Setting, SingleMarks, draw_truth, mark_places, mark_singles
from studio.pipelines.settings import GenerateSettings, usual_guidance
from studio.stats import Share
from studio.trainers.sample_concepts import Learned, learn_sample
from studio.ui.commands import command_maker, next_commands
from studio.ui.story import TRUE, ConceptStory, Growth, Mark, Measure, SceneRow, Shot, Story

SETTINGS: tuple[Setting, ...] = (("night", "flat"), ("grass", "outline"), ("sky", "watercolor"), ("sand", "pixel"))
PAIR_SETTINGS: tuple[Setting, ...] = (("paper", "flat"), ("night", "flat"), ("grass", "flat"), ("sand", "outline"))
UNTRAINED = "untrained base"


@dataclass(frozen=True)
class DemoPlan:
    """Which samples to learn and how, and how many pictures to draw of each scene; seeds count up from `seed`."""

    samples: tuple[str, str] = ("milo", "rex")
    preset: str = "normal"
    count: int = 2
    seed: int = 1
    fresh: bool = False


@dataclass
class _Clock:
    """Names the parts of the demo, and how long each took."""

    emit: Emit
    times: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str, phase: Phase | None = None) -> Iterator[None]:
        self.emit(phase or Phase(name))
        began = time.monotonic()
        yield
        self.times.append((name, time.monotonic() - began))


@dataclass(frozen=True)
class _Desk:
    """What drawing needs: the base, how to draw, how to say it as a command, and who listens."""

    base: BaseModel
    plan: DemoPlan
    command: Callable[[str], str]
    emit: Emit

    def untrained(self, prompt: str, concepts: Sequence[Concept]) -> list[Image.Image]:
        """Pictures by the base, to which a trigger means nothing."""
        return generate(self.base, _settings(self, expand_prompt(prompt, concepts)), [], silent)

    def merge(self, prompt: str, concepts: Sequence[Concept]) -> list[Image.Image]:
        """Pictures with the concepts added to the weights."""
        return generate(self.base, _settings(self, prompt), _at_one(concepts), silent)

    def compose(self, prompt: str, concepts: Sequence[Concept]) -> list[Image.Image]:
        """Pictures by the method that we recommend."""
        composer = find_method(DEFAULT_METHOD).make()
        return compose(self.base, _settings(self, prompt), _at_one(concepts), composer, silent)


def run_demo(plan: DemoPlan, home: Home, home_option: Path | None, emit: Emit) -> Story:
    """Learn, draw and score; the concepts stay in the library of `home`.

    Raises StudioError before any work where the embedded base or the judge is missing.
    """
    source = find_base(EMBEDDED)
    judge = Judge.load("A")
    clock = _Clock(emit)
    learned = [_learn(plan, sample, home, clock) for sample in plan.samples]
    with clock.part("Load the base"):
        base = load_base(source)
    desk = _Desk(base, plan, command_maker(home_option), emit)
    galleries = [gallery_of(judge, one.subject) for one in learned]
    concepts = tuple(
        _concept_story(desk, judge, gallery, one, clock) for gallery, one in zip(galleries, learned, strict=True)
    )
    pair_scenes, pair_measures = _draw_pair(desk, judge, (galleries[0], galleries[1]), (learned[0], learned[1]), clock)
    return Story(
        concepts=concepts,
        pair_scenes=pair_scenes,
        pair_measures=pair_measures,
        candidates=len(galleries[0].subjects),
        times=tuple(clock.times),
        machine=_machine(base),
        settings=_describe_settings(desk),
        commands=next_commands(learned[0].concept.name, learned[1].concept.name, desk.command),
        library=home.library,
    )


def _learn(plan: DemoPlan, sample: str, home: Home, clock: _Clock) -> Learned:
    def listen(event: Event) -> None:
        match event:
            case Phase(name, total):
                clock.emit(Phase(f"Learn {sample}: {name}", total))
            case Preview() | Done():  # files still on the move; the report shows them
                pass
            case _:
                clock.emit(event)

    with clock.part(f"Learn {sample}", Phase(f"Learn {sample}: look at what there is")):
        return learn_sample(sample, plan.preset, home, listen, anew=plan.fresh)


def _concept_story(desk: _Desk, judge: Judge, gallery: Gallery, one: Learned, clock: _Clock) -> ConceptStory:
    name = one.concept.name
    prompts = [f"a <{name}> {_words(setting)}" for setting in SETTINGS]
    before, after = _draw_all(desk, prompts, [one.concept], name, clock, [desk.merge])
    asked = [setting for setting in SETTINGS for _ in range(desk.plan.count)]
    with clock.part(f"Judge {name}"):
        true = through_vae(desk.base, draw_truth([one.subject], asked, desk.plan.seed))
        kinds = {f"with {name}": after, UNTRAINED: before, TRUE: true}
        marks = {kind: mark_singles(judge, gallery, one.subject, made, asked) for kind, made in kinds.items()}
    shown = [_single_marks(name, mark) for mark in marks[f"with {name}"]]
    return ConceptStory(
        name=name,
        phrase=one.concept.phrase,
        class_word=one.concept.class_word,
        photos=tuple(_open(path) for path in sorted(sample_folder(one.sample).glob("*.png"))),
        steps=one.recipe.steps,
        seconds=one.seconds,
        reused=one.reused,
        losses=one.losses,
        growth=_growth(one),
        scenes=_rows(desk, "generate", prompts, [one.concept], (before, after), ([()] * len(before), shown)),
        measures=(
            Measure(f"Is it {name}?", _shares(marks, lambda m: m.identity)),
            Measure("Is it where the prompt says?", _shares(marks, lambda m: m.background)),
            Measure("Is it drawn as the prompt says?", _shares(marks, lambda m: m.style)),
        ),
    )


def _draw_pair(
    desk: _Desk, judge: Judge, galleries: tuple[Gallery, Gallery], pair: tuple[Learned, Learned], clock: _Clock
) -> tuple[tuple[SceneRow, ...], tuple[Measure, ...]]:
    left, right = (one.concept for one in pair)
    subjects = (pair[0].subject, pair[1].subject)
    prompts = [f"a <{left.name}> on the left and a <{right.name}> on the right {_words(s)}" for s in PAIR_SETTINGS]
    before, merged, composed = _draw_all(
        desk, prompts, [left, right], "both together", clock, [desk.merge, desk.compose]
    )
    asked = [setting for setting in PAIR_SETTINGS for _ in range(desk.plan.count)]
    with clock.part("Judge both"):
        true = through_vae(desk.base, draw_truth(subjects, asked, desk.plan.seed))
        kinds = {"merged": merged, "composed": composed, UNTRAINED: before, TRUE: true}
        marks = {kind: mark_places(judge, galleries, subjects, made, asked) for kind, made in kinds.items()}
    told = [[_pair_marks(left.name, right.name, mark) for mark in marks[kind]] for kind in ("merged", "composed")]
    return _rows(desk, "compose", prompts, [left, right], (merged, composed), told), (
        Measure("Both themselves, each in its place?", _shares(marks, lambda m: all(m.in_place))),
        Measure(f"Is {left.name} on the left?", _shares(marks, lambda m: m.in_place[0])),
        Measure(f"Is {right.name} on the right?", _shares(marks, lambda m: m.in_place[1])),
        Measure("Has one taken on something of the other?", _shares(marks, lambda m: m.leak)),
        Measure("Are they where the prompt says?", _shares(marks, lambda m: m.background)),
    )


def _draw_all(
    desk: _Desk,
    prompts: Sequence[str],
    concepts: Sequence[Concept],
    title: str,
    clock: _Clock,
    ways: Sequence[Callable[[str, Sequence[Concept]], list[Image.Image]]],
) -> list[list[Image.Image]]:
    """The prompts drawn by the untrained base and in each of the `ways`: `plan.count` pictures each, the same seeds."""
    total = (1 + len(ways)) * len(prompts) * desk.plan.count
    made: list[list[Image.Image]] = [[] for _ in range(1 + len(ways))]
    with clock.part(f"Draw {title}", Phase(f"Draw {title}", total)):
        for prompt in prompts:
            for pictures, way in zip(made, (desk.untrained, *ways), strict=True):
                pictures += way(prompt, concepts)
                desk.emit(Step(sum(map(len, made)), total))
    return made


def _settings(desk: _Desk, prompt: str) -> GenerateSettings:
    plan, guidance = desk.plan, usual_guidance(desk.base.source)
    return GenerateSettings(prompt=prompt, guidance=guidance, seed=plan.seed, count=plan.count)


def _rows(
    desk: _Desk,
    verb: str,
    prompts: Sequence[str],
    concepts: Sequence[Concept],
    pictures: tuple[Sequence[Image.Image], Sequence[Image.Image]],
    marks: Sequence[Sequence[tuple[Mark, ...]]],
) -> tuple[SceneRow, ...]:
    """The prompts with the pictures of two ways and their marks; the command `verb` draws those of the second."""
    count, seeds = desk.plan.count, range(desk.plan.seed, desk.plan.seed + desk.plan.count)
    rows = []
    for number, prompt in enumerate(prompts):
        part, text = slice(number * count, (number + 1) * count), expand_prompt(prompt, concepts)
        before, after = (
            tuple(Shot(p, text, seed, m) for p, seed, m in zip(made[part], seeds, told[part], strict=True))
            for made, told in zip(pictures, marks, strict=True)
        )
        command = desk.command(f'{verb} "{prompt}" --seed {desk.plan.seed} --count {count}')
        rows.append(SceneRow(prompt, command, before, after))
    return tuple(rows)


def _growth(one: Learned) -> tuple[Growth, ...]:
    """The sample pictures that the training drew along the way."""
    shots: dict[int, list[Shot]] = {}
    for path in sorted((one.concept.folder / "samples").glob("step-*.png")):
        step, number = (int(n) for n in re.findall(r"\d+", path.name))
        prompt, seed = one.recipe.sample_prompts[number], one.recipe.seed + number
        shots.setdefault(step, []).append(Shot(_open(path), prompt, seed))
    return tuple(Growth(step, tuple(made)) for step, made in shots.items())


def _single_marks(name: str, mark: SingleMarks) -> tuple[Mark, ...]:
    return Mark(name, mark.identity), Mark("place", mark.background), Mark("style", mark.style)


def _pair_marks(left: str, right: str, mark: Marks) -> tuple[Mark, ...]:
    return Mark(left, mark.in_place[0]), Mark(right, mark.in_place[1]), Mark("no leak", not mark.leak)


def _shares(marks: Mapping[str, Sequence[Any]], ask: Callable[[Any], bool]) -> dict[str, Share]:
    return {kind: Share.of([ask(mark) for mark in made]) for kind, made in marks.items()}


def _at_one(concepts: Sequence[Concept]) -> list[tuple[Concept, float]]:
    return [(concept, 1.0) for concept in concepts]


def _words(setting: Setting) -> str:
    background, style = setting
    return f"{BACKGROUND_WORDS[background][0]}, {STYLE_WORDS[style][0]}"


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _machine(base: BaseModel) -> str:
    software = f"{platform.system()}, Python {platform.python_version()}, torch {version('torch')}"
    device = "" if base.device.type == "cpu" else f" and a {base.device.type.upper()} device"
    return f"{os.cpu_count()} CPU cores{device}; {software}"


def _describe_settings(desk: _Desk) -> str:
    settings, (width, height) = _settings(desk, ""), desk.base.native_size
    return f"{width} x {height} px, {settings.steps} steps, guidance {settings.guidance:g}"
