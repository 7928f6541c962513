"""What a composition's benchmark compares: the methods, and beside them what nobody can be expected to surpass.

The yardsticks are true drawings, what the base makes of things that it knows, and each concept drawn alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from studio.concepts import Concept
from studio.events import silent
from studio.judge import Gallery, Judge
from studio.models import BaseModel
from studio.picturebook import BACKGROUND_WORDS, STYLE_WORDS, Subject, with_article
from studio.pipelines.base_bench import draw_prompts
from studio.pipelines.baselines import Merge
from studio.pipelines.compose import Composer, draw
from studio.pipelines.decoding import decode
from studio.pipelines.methods import AS_PUBLISHED, METHODS, Method
from studio.pipelines.protocols import columns, in_a_row
from studio.pipelines.scores import Marks, Setting, canvas, draw_truth, mark_places, side_by_side
from studio.pipelines.settings import GenerateSettings
from studio.regions import Layout

TRUTH, BASE, ALONE = "truth", "base", "alone"
WITH_BOXES = "+boxes"
GalleryOf = Callable[[Subject], Gallery]


@dataclass(frozen=True)
class Known:
    """A concept, and the subject that it should be."""

    concept: Concept
    subject: Subject


@dataclass(frozen=True)
class Arm:
    """A way to draw: a method, with boxes or without, or None for a yardstick."""

    name: str
    method: Method | None = None
    boxes: bool = False


YARDSTICKS = (Arm(TRUTH), Arm(BASE), Arm(ALONE))


def arms_of(names: Sequence[str]) -> list[Arm]:
    """Those of the methods of these names; a method that can do with boxes and without is two, and where we recommend
    other settings than the authors, theirs follow."""
    found = []
    for method in (one for name in names for one in (METHODS[name], AS_PUBLISHED.get(name)) if one is not None):
        if method.boxes != "needs":
            found.append(Arm(method.name, method))
        if method.boxes != "ignores":
            found.append(Arm(method.name + WITH_BOXES * (method.boxes == "uses"), method, boxes=True))
    return found


@dataclass(frozen=True)
class Ask:
    """Pictures of a few concepts from left to right in one scene, one from each seed."""

    members: tuple[Known, ...]
    scene: Setting
    seeds: tuple[int, ...]
    steps: int
    guidance: float

    @property
    def subjects(self) -> list[Subject]:
        """What should be seen, from left to right."""
        return [one.subject for one in self.members]

    def settings(self, words: Sequence[str], native: tuple[int, int]) -> GenerateSettings:
        """Of pictures of the things that `words` name, by a base of that native size."""
        ground, style = self.scene
        prompt = f"{in_a_row(words)} {BACKGROUND_WORDS[ground][0]}, {STYLE_WORDS[style][0]}"
        width, height = canvas(native, len(words))
        return GenerateSettings(
            prompt, width=width, height=height, steps=self.steps, guidance=self.guidance, count=len(self.seeds)
        )


def layout_of(members: Sequence[Known]) -> Layout:
    """Halves for two, thirds for three."""
    return columns([one.concept.name for one in members])


def draw_and_mark(
    base: BaseModel, judge: Judge, gallery: GalleryOf, arm: Arm, ask: Ask
) -> tuple[list[Image.Image], list[Marks]]:
    """One picture and its marks for each seed."""
    if arm.name == BASE:
        return _things_of_the_base(base, judge, ask)
    if arm.name == ALONE:
        return _each_alone(base, judge, gallery, ask)
    if arm.method is None:
        pictures = [draw_truth(ask.subjects, [ask.scene], seed)[0] for seed in ask.seeds]
    else:
        pictures = compose_in_a_row(base, ask, arm.method.make(), arm.boxes)
    return pictures, _marked(judge, gallery, ask, pictures)


def compose_in_a_row(base: BaseModel, ask: Ask, composer: Composer, boxes: bool) -> list[Image.Image]:
    """The concepts of `ask`, by a method; with boxes where wanted."""
    settings = ask.settings([f"a <{one.concept.name}>" for one in ask.members], base.native_size)
    chosen = [(one.concept, 1.0) for one in ask.members]
    layout = layout_of(ask.members) if boxes else None
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in ask.seeds]
    return decode(base, draw(base, settings, chosen, composer, silent, layout, generators), tiling=False)


def _marked(judge: Judge, gallery: GalleryOf, ask: Ask, pictures: Sequence[Image.Image]) -> list[Marks]:
    known = [gallery(one.subject) for one in ask.members]
    return mark_places(judge, known, ask.subjects, pictures, [ask.scene] * len(pictures))


def _things_of_the_base(base: BaseModel, judge: Judge, ask: Ask) -> tuple[list[Image.Image], list[Marks]]:
    """Class and colour of each, asked for in words that the base knows."""
    words = [with_article(f"{one.colour} {one.kind}") for one in ask.subjects]
    settings = ask.settings(words, base.native_size)
    prompts, size = [settings.prompt] * settings.count, canvas(base.native_size, len(words))
    pictures = draw_prompts(base, prompts, ask.seeds, settings.steps, settings.guidance, silent, size)
    places = [judge.read(pictures, [place] * len(pictures)) for place in side_by_side(len(words))]
    marks = []
    for whole, *readings in zip(judge.read(pictures), *places, strict=True):
        right = tuple(reading.shows(one) for reading, one in zip(readings, ask.subjects, strict=True))
        marks.append(Marks(right, (), right, (), whole.background == ask.scene[0]))
    return pictures, marks


def _each_alone(base: BaseModel, judge: Judge, gallery: GalleryOf, ask: Ask) -> tuple[list[Image.Image], list[Marks]]:
    """Every concept in a picture of its own, beside each other on one sheet; seen as a whole."""
    asks = [Ask((one,), ask.scene, ask.seeds, ask.steps, ask.guidance) for one in ask.members]
    columns = [compose_in_a_row(base, one, Merge(), boxes=False) for one in asks]
    singles = [_marked(judge, gallery, one, pictures) for one, pictures in zip(asks, columns, strict=True)]
    marks = [
        Marks(
            tuple(one.in_place[0] for one in row),
            tuple(one.margins[0] for one in row),
            tuple(one.seen[0] for one in row),
            (),
            all(one.background for one in row),
        )
        for row in zip(*singles, strict=True)
    ]
    return [_beside(row) for row in zip(*columns, strict=True)], marks


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for n, picture in enumerate(pictures):
        sheet.paste(picture, (n * width, 0))
    return sheet
