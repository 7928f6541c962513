"""The best of the candidates is kept, and said by its seed."""

from collections.abc import Sequence

import pytest
from PIL import Image

from studio.bases import Sizes
from studio.events import silent
from studio.pipelines.best_of import MERITS, Candidate, best_of
from studio.pipelines.evaluation import Scorer, Scores
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.methods import METHODS
from studio.pipelines.settings import GenerateSettings

SIZES = Sizes((64, 64), 8, 8)
PICTURE = Image.new("RGB", (2, 2))


class BySeed(Scorer):
    """Scores that a table of seeds gives; a picture is as wide as its seed."""

    name = "table"

    def __init__(self, table: dict[int, Scores]) -> None:
        self.table = table

    def __call__(self, case: Case, pictures: Sequence[Image.Image]) -> list[Scores]:
        return [self.table[one.width] for one in pictures]


def draw(settings: GenerateSettings) -> list[Image.Image]:
    return [Image.new("RGB", (settings.seed + n, 1)) for n in range(settings.count)]


def chosen(table: dict[int, Scores], number: int, count: int, size: int = 64) -> list[list[int]]:
    settings = GenerateSettings("a <milo>", width=size, height=size, seed=1, count=count)
    groups = best_of(number, Case("", settings, (), METHODS["merge"]), SIZES, draw, [BySeed(table)], silent)
    return [[one.seed for one in group] for group in groups]


def test_each_picture_is_the_best_of_candidates_of_its_own():
    table: dict[int, Scores] = {
        seed: {"judge-margin": margin} for seed, margin in enumerate((3, 9, 1, 4, 2, 8), start=1)
    }
    assert chosen(table, 3, 2) == [[2, 1, 3], [6, 4, 5]]


def test_success_counts_before_any_margin_and_of_equals_the_first_is_kept():
    table: dict[int, Scores] = {
        1: {"success": 0, "judge-margin": 9},
        2: {"success": 1, "judge-margin": 0},
        3: {"success": 1, "judge-margin": 0},
    }
    assert chosen(table, 3, 1) == [[2, 3, 1]]


@pytest.mark.parametrize("size", [64, 1024])
def test_large_pictures_are_drawn_one_at_a_time(size: int):
    asked = []

    def watched(settings: GenerateSettings) -> list[Image.Image]:
        asked.append(settings.count)
        return draw(settings)

    settings = GenerateSettings("a <milo>", width=size, height=size, seed=1, count=1)
    best_of(4, Case("", settings, (), METHODS["merge"]), Sizes((size, size), 8, 8), watched, [], silent)
    assert asked == ([4] if size == 64 else [1] * 4)


def test_the_merits_are_scores():
    from studio.pipelines.evaluation_table import SENSES

    assert all(SENSES[name].better == "higher" for name in MERITS)
    assert Candidate(1, PICTURE, {"CLIP-I": 0.5, "sharpness": 9}).merit == (0.5,)
