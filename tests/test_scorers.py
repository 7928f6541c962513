"""Scores are what their definitions say, with a judge that is known and an encoder that anyone can work out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studio.concepts import Concept
from studio.picturebook import SAMPLE_SUBJECTS, Scene, sample_scenes
from studio.picturebook_draw import render
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.methods import METHODS
from studio.pipelines.protocols import columns
from studio.pipelines.scorers import Arranged, JudgeA, Likeness, Reference, Watch
from studio.pipelines.settings import GenerateSettings
from studio.regions import Box, Layout

RED, GREEN, BLUE = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
PROMPT = "a <milo> on the left and a <rex> on the right at night, flat style"


class Colours:
    """The mean colour, of length 1."""

    name, weights = "colours", "none"

    def images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return torch.tensor(np.stack([_unit(one) for one in pictures]), dtype=torch.float32)


def _unit(picture: Image.Image) -> np.ndarray:
    mean = np.asarray(picture, dtype=float).mean((0, 1))
    return mean / np.linalg.norm(mean)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> Image.Image:
    picture = plain(left, (16, 8))
    picture.paste(plain(right), (8, 0))
    return picture


def case(*names: str, places: Layout | None = None, prompt: str = PROMPT) -> Case:
    concepts = tuple(Concept(name, "sks", "cat", "picturebook", "sdxl", "lora", Path(name)) for name in names)
    return Case("merge", GenerateSettings(prompt), concepts, METHODS["merge"], places)


@pytest.fixture
def likeness() -> Likeness:
    known = {name: Reference("cat", (plain(c),)) for name, c in (("milo", RED), ("rex", BLUE), ("luna", GREEN))}
    return Likeness("DINO", Colours(), known, {"milo": "cat", "rex": "dog", "luna": "cat"})


def cosine(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    return float(_unit(plain(one)) @ _unit(plain(other)))


def test_each_place_is_held_against_its_own_pictures(likeness: Likeness):
    both = case("milo", "rex", places=columns(["milo", "rex"]))
    right, wrong = likeness(both, [halves(RED, BLUE), halves(BLUE, RED)])
    assert right == pytest.approx(
        {"DINO-I": 1, "DINO-margin": 1 - cosine(RED, BLUE), "DINO-leak": cosine(RED, BLUE) - 1}, abs=1e-5
    )
    assert wrong["DINO-leak"] == pytest.approx(1 - cosine(RED, BLUE), abs=1e-5)
    assert wrong["DINO-margin"] < 0


def test_without_places_each_is_found_where_it_is_most_itself_and_nothing_leaks(likeness: Likeness):
    exchanged, one_alone = likeness(case("milo", "rex"), [halves(BLUE, RED), plain(RED)])
    assert exchanged == pytest.approx({"DINO-I": 1, "DINO-margin": 1 - cosine(RED, BLUE)}, abs=1e-5)
    assert one_alone["DINO-I"] == pytest.approx((1 + cosine(RED, BLUE)) / 2, abs=1e-5)
    assert one_alone["DINO-margin"] < 0


def test_one_alone_is_held_against_the_whole_picture(likeness: Likeness):
    both = _unit(halves(RED, BLUE)) @ _unit(plain(RED))
    assert likeness(case("milo", prompt="a <milo>"), [halves(RED, BLUE)])[0]["DINO-I"] == pytest.approx(both, abs=1e-5)


def test_a_concept_without_pictures_has_no_likeness(likeness: Likeness):
    assert likeness(case("stranger"), [plain(RED)]) == [{}]


def test_other_references_places_or_prompts_are_other_scores(likeness: Likeness):
    first = likeness.made_from(case("milo"))
    assert first == likeness.made_from(case("milo"))
    assert first != likeness.made_from(case("milo", places=Layout({"milo": Box(0, 0, 0.5, 1)})))
    assert first != likeness.made_from(case("milo", prompt="a <milo>"))
    others = {"milo": Reference("cat", (plain(GREEN),))}
    assert first != Likeness("DINO", Colours(), others, likeness.classes).made_from(case("milo"))


@pytest.fixture(scope="module")
def judge() -> JudgeA:
    return JudgeA(
        {
            name: Reference(one.kind, tuple(render(scene) for scene in sample_scenes(one, 5, seed=700)))
            for name, one in SAMPLE_SUBJECTS.items()
        }
    )


def drawn(*names: str, ground: str = "night", seed: int = 1) -> Image.Image:
    return render(Scene(tuple(SAMPLE_SUBJECTS[name] for name in names), ground, "flat", "big", seed))


def test_the_judge_reads_every_sample_from_its_pictures(judge: JudgeA):
    assert judge.subjects == SAMPLE_SUBJECTS


def test_the_judge_tells_true_pairs_from_exchanged_ones(judge: JudgeA):
    both = case("milo", "rex", places=columns(["milo", "rex"]))
    right, exchanged, twice = judge(both, [drawn("milo", "rex"), drawn("rex", "milo"), drawn("milo", "milo")])
    assert (right["success"], right["leak"]) == (1, 0)
    assert (exchanged["success"], exchanged["leak"]) == (0, 1)
    assert (twice["success"], twice["itself"]) == (0, 0)


def test_without_places_any_order_is_right(judge: JudgeA):
    right, exchanged = judge(case("milo", "rex"), [drawn("milo", "rex"), drawn("rex", "milo")])
    assert (right["success"], exchanged["success"]) == (1, 1)


def test_a_background_is_asked_for_by_words_alone(judge: JudgeA):
    pictures = [drawn("milo", ground="grass")]
    assert judge(case("milo", prompt="a <milo> at night"), pictures)[0]["background"] == 0
    assert "background" not in judge(case("milo", prompt="a <milo>"), pictures)[0]


def test_the_judge_is_silent_of_what_is_not_of_its_world(judge: JudgeA):
    stranger = JudgeA({"aunt": Reference("woman", (plain(RED),))})
    assert stranger(case("aunt", prompt="<aunt>"), [plain(RED)]) == [{}]
    assert judge(case("aunt", "milo", prompt="<aunt> and <milo>"), [plain(RED)]) == [{}]


class Found:
    """A detector that finds what a table says."""

    name, weights = "table", "none"

    def __init__(self, table: dict[str, list[Box]]) -> None:
        self.table = table

    def find(self, picture: Image.Image, words: str) -> list[Box]:
        return self.table[words]


@pytest.mark.parametrize(
    ("cats", "dogs", "expected"),
    [
        ([Box(0, 0, 0.5, 1)], [Box(0.5, 0, 1, 1)], 1),
        ([Box(0, 0, 0.5, 0.5), Box(0, 0, 0.5, 1)], [Box(0.5, 0, 1, 1)], 0.5),  # only the likeliest counts
        ([Box(0.25, 0, 0.75, 1)], [Box(0.5, 0, 1, 1)], 1 / 3),
        ([Box(0, 0, 0.5, 1)], [], 0),
    ],
)
def test_a_layout_is_as_good_as_the_worst_place(cats: list[Box], dogs: list[Box], expected: float):
    both = case("milo", "rex", places=columns(["milo", "rex"]))
    scorer = Arranged(Found({"cat": cats, "dog": dogs}), {"milo": "cat", "rex": "dog"})  # type: ignore[arg-type]
    assert scorer(both, [plain(RED)]) == [{"layout": pytest.approx(expected)}]
    assert scorer(case("milo", "rex"), [plain(RED)]) == [{}]


def test_two_of_one_class_share_out_what_is_found():
    both = case("milo", "luna", places=columns(["milo", "luna"]))
    found = {"cat": [Box(0.5, 0, 1, 1), Box(0, 0, 0.5, 0.5)]}
    scorer = Arranged(Found(found), {"milo": "cat", "luna": "cat"})  # type: ignore[arg-type]
    assert scorer(both, [plain(RED)]) == [{"layout": pytest.approx(0.5)}]


def test_guards_look_at_the_picture_alone():
    grey, bright = Watch()(case("milo"), [plain((90, 90, 90)), plain((255, 0, 0))])
    assert (grey["saturation"], bright["saturation"]) == (0, 1)
    assert Watch().made_from(case("milo")) == Watch().made_from(replace(case("milo"), row="other"))
