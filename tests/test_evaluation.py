"""What is there is not made again, and what is made is what the loops would have made."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from composing import HALVES
from PIL import Image

from studio.events import silent
from studio.pipelines.compose import compose
from studio.pipelines.evaluation import Cabinet, Found, Scorer, Scores, evaluate
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.methods import METHODS
from studio.pipelines.settings import GenerateSettings

SETTINGS = GenerateSettings("a <milo> and an <rex> on the grass", steps=2, seed=7, count=3)


class Redness(Scorer):
    """The mean of red, which anyone can work out; counts what it was asked."""

    name = "red"

    def __init__(self, made_from: object = None) -> None:
        self.asked, self.told = 0, made_from

    def made_from(self, case: Case) -> object:
        return self.told

    def __call__(self, case: Case, pictures: Sequence[Image.Image]) -> list[Scores]:
        self.asked += len(pictures)
        return [{"red": _red(one)} for one in pictures]

    def together(self, case: Case, pictures: Sequence[Image.Image]) -> Scores:
        return {"all red": sum(map(_red, pictures))}


def _red(picture: Image.Image) -> float:
    red = picture.getchannel("R").tobytes()
    return sum(red) / len(red)


@pytest.fixture
def cases(concepts):
    return [Case(name, SETTINGS, tuple(concepts), METHODS[name], HALVES) for name in ("merge", "regional")]


@pytest.fixture
def run(base, cases, tmp_path):
    def again(scorer: Redness, chosen: Sequence[Case] = cases) -> Found:
        return evaluate(base, chosen, [scorer], Cabinet(tmp_path / "cabinet"), silent)

    return again


def test_pictures_are_those_of_the_method_and_scores_those_of_the_pictures(run, base, concepts):
    found = run(Redness())
    strengths = [(one, 1.0) for one in concepts]
    right = compose(base, SETTINGS, strengths, METHODS["regional"].make(), silent, HALVES)
    regional = [one for one in found.pictures if one.row == "regional"]
    assert [Image.open(one.file).tobytes() for one in regional] == [one.tobytes() for one in right]
    assert [one.scores["red"] for one in regional] == [_red(one) for one in right]
    assert found.together["regional", SETTINGS.prompt]["all red"] == sum(map(_red, right))


def test_what_is_there_is_not_made_again(run):
    first, scorer = run(Redness()), Redness()
    again = run(scorer)
    assert (first.drawn, again.drawn, scorer.asked) == (6, 0, 0)
    assert again == replace(first, drawn=0)


def test_only_the_missing_is_made(run, cases):
    first = run(Redness(), cases[:1])
    first.pictures[1].file.unlink()
    more = [replace(one, settings=replace(SETTINGS, count=4)) for one in cases[:1]]
    assert run(Redness(), more).drawn == 2


def test_another_scorer_scores_what_is_drawn(run):
    run(Redness())
    scorer = Redness("other weights")
    assert run(scorer).drawn == 0
    assert scorer.asked == 6


def test_other_places_are_other_pictures_only_for_what_looks_at_them(run, cases):
    run(Redness())
    moved = [replace(one, places=None if one.row == "merge" else HALVES, told=True) for one in cases]
    assert run(Redness(), moved).drawn == 0


def test_a_damaged_score_is_made_again(run, tmp_path):
    first = run(Redness())
    for file in (tmp_path / "cabinet" / "scores").glob("*.json"):
        file.write_text(file.read_text()[:-3])
    assert [one.scores["red"] for one in run(Redness()).pictures] == [one.scores["red"] for one in first.pictures]
