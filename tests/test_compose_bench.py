from dataclasses import replace

import pytest

from studio.events import silent
from studio.judge import Judge
from studio.models import find_base, load_base
from studio.picturebook import SAMPLE_SUBJECTS
from studio.pipelines.baselines import Merge
from studio.pipelines.compose_bench import TRUTH, ComposeBench, Known, bench_pairs, halves, report_of, success
from studio.pipelines.regional import Regional
from studio.pipelines.scores import PairMarks

PLAN = ComposeBench(seeds=4, steps=1)


@pytest.fixture(scope="module")
def found(tiny_sdxl, tiny_concepts):
    base, judge = load_base(find_base(str(tiny_sdxl)), "cpu"), Judge.load("B")
    milo, rex = (Known(one, SAMPLE_SUBJECTS[one.name]) for one in tiny_concepts)
    luna = Known(replace(milo.concept, name="luna"), SAMPLE_SUBJECTS["luna"])
    return bench_pairs(base, judge, [(milo, rex), (milo, luna)], {"merge": Merge, "regional": Regional}, PLAN, silent)


def test_true_drawings_succeed_and_noise_does_not(found):
    report = report_of(found, PLAN)["methods"]
    assert report[TRUTH]["success"]["value"] >= 0.75
    assert report["merge"]["success"]["value"] == report["regional"]["success"]["value"] == 0
    assert [row["success"]["count"] for row in report.values()] == [8, 8, 8]
    assert [row["success, same class"]["count"] for row in report.values()] == [4, 4, 4]
    assert report[TRUTH]["by pair"].keys() == {"milo + rex", "milo + luna"}


def test_every_method_draws_every_pair_and_seed(found):
    assert [len(one.pictures) for several in found.values() for one in several] == [4] * 6
    assert found["merge"][0].pictures[0] != found["regional"][0].pictures[0]


@pytest.mark.parametrize(
    ("marks", "right"),
    [((1, 1, 1, 0), True), ((1, 1, 1, 1), False), ((1, 0, 1, 0), False), ((1, 1, 0, 0), False)],
)
def test_success_is_all_of_it(marks, right):
    assert success(PairMarks(*map(bool, marks))) is right


def test_halves_share_the_canvas():
    assert halves("a", "b").masks(["a", "b"], 6, 6).sum(0).tolist() == [[1] * 6] * 6
