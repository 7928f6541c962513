"""What is measured of scores, by brute force; and that what is called spoilt is spoilt so and no further."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from studio.picturebook import SAMPLE_SUBJECTS, Scene, distractors
from studio.pipelines import metric_bench as bench
from studio.pipelines.best_of import MERITS
from studio.pipelines.evaluation_table import MAIN
from studio.pipelines.metric_bench import SPOILT, TRUE, Read, correlation, told_apart

PAIRS = [("milo", "rex"), ("luna", "bella"), ("dash", "zara")]
FIELDS = ("kind", "colour", "second", "pattern", "accessory", "accent")


def scene(pair: tuple[str, str]) -> Scene:
    return Scene(tuple(SAMPLE_SUBJECTS[name] for name in pair), "night", "flat", "big", 5)


def reads(score: str, values: Sequence[float], way: str) -> list[Read]:
    return [Read(way, PAIRS[n % 3], {score: value}) for n, value in enumerate(values)]


@pytest.mark.parametrize(("score", "sign"), [("CLIP-I", 1), ("CLIP-leak", -1), ("features-I, whole", 1)])
def test_what_is_told_apart_is_the_share_of_all_pairs(score: str, sign: int):
    rng = random.Random(3)
    true, spoilt = ([rng.randrange(6) + extra for _ in range(9)] for extra in (sign, 0))
    wins = [(sign * a > sign * b) + (a == b) / 2 for a, b in product(true, spoilt)]
    found = told_apart(reads(score, true, TRUE), reads(score, spoilt, "blended"), score)
    assert found["value"] == pytest.approx(sum(wins) / len(wins), abs=1e-3)
    assert found["low"] <= found["value"] <= found["high"]


def test_a_score_that_knows_the_truth_tells_all_apart_and_one_that_knows_nothing_none():
    true, spoilt = reads("CLIP-T", [2.0] * 6, TRUE), reads("CLIP-T", [1.0] * 6, "blurred")
    assert told_apart(true, spoilt, "CLIP-T")["value"] == 1
    assert told_apart(true, true, "CLIP-T")["value"] == 0.5
    assert correlation([*true, *spoilt], "CLIP-T") == pytest.approx(1)
    assert correlation([*true, *reads("CLIP-T", [2.0] * 3, "blurred")], "CLIP-T") == 0


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("seed", range(4))
def test_drawings_are_spoilt_in_their_own_way_alone(pair: tuple[str, str], seed: int):
    whole = scene(pair)
    left, right = whole.subjects

    def spoilt(way: str) -> Scene:
        made = SPOILT[way][1](whole, random.Random(seed))
        assert isinstance(made, Scene)
        return made

    assert spoilt("sides exchanged") == replace(whole, subjects=(right, left))
    assert spoilt("one missing").subjects in {(left,), (right,)}
    assert spoilt("one twice").subjects in {(left, left), (right, right)}
    assert spoilt("another background") == replace(whole, background=spoilt("another background").background)
    assert spoilt("another background").background != "night"
    one, other = spoilt("one thing of one differs").subjects
    assert (one in distractors(left)) + (other in distractors(right)) == 1
    assert (one == left) + (other == right) == 1
    for way in ("blended", "colours swapped"):
        for made, own, its in zip(spoilt(way).subjects, (left, right), (right, left), strict=True):
            assert made != own
            assert made.kind == own.kind
            assert all(getattr(made, field) in {getattr(own, field), getattr(its, field)} for field in FIELDS)


@pytest.mark.parametrize("way", ["blurred", "burnt"])
def test_what_is_about_the_picture_keeps_its_size(way: str):
    made = SPOILT[way][1](scene(PAIRS[0]), random.Random(0))
    assert isinstance(made, Image.Image)
    assert made.size == (96, 96)


def test_the_judge_is_believed_where_it_knows(run_studio, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(bench, "SHOWN", 2)
    ended = run_studio("bench", "metrics", "--names", "milo,rex", "--scenes", 1, "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert "sides exchanged" in ended.out
    assert (tmp_path / "metrics.png").is_file()
    from studio.pipelines.bench_documents import made, read_reports

    assert "| `success` |" in made("metrics", read_reports(tmp_path)["metrics"])


def test_what_was_measured_to_be_believed_is_what_chooses():
    told = json.loads((Path(__file__).parents[1] / "docs" / "benchmarks" / "metrics.json").read_text())
    assert told["pictures of each kind"] >= 200
    for question in ("Is it the concept?", "Is anything bleeding?", "Is everyone there?"):
        best = told["believe"][question]
        assert [best["with a judge"], best["on any base"]] == list(MAIN[:2])
    assert [name for name in MERITS if name in MAIN] == list(MAIN)
