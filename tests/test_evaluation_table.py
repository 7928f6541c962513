"""A table of an evaluation, from scores whose means anyone can work out."""

import csv
import io
from pathlib import Path

import pytest

from studio.pipelines.evaluation import Found, Scored, Scores
from studio.pipelines.evaluation_table import as_csv, main_score, report_of, scores_of, worst_first
from studio.stats import Share
from studio.ui.evaluate_page import best_rows


def found(*rows: tuple[str, str, int, Scores], together: dict[tuple[str, str], Scores] | None = None) -> Found:
    pictures = [Scored(row, prompt, seed, Path(f"{row}{seed}.png"), scores) for row, prompt, seed, scores in rows]
    return Found(pictures, together or {}, 0)


TWO = found(
    ("merge", "p", 1, {"success": 0, "CLIP-I": 0.25, "seconds": 2}),
    ("merge", "p", 2, {"success": 1, "CLIP-I": 0.75, "seconds": 4}),
    ("auto", "p", 1, {"success": 1, "CLIP-I": 0.5, "seconds": 3}),
    ("auto", "p", 2, {"success": 1, "CLIP-I": 0.5, "seconds": 5}),
    together={("merge", "p"): {"diversity": 0.5}, ("auto", "p"): {"diversity": 0.25}},
)


def test_rows_have_means_and_shares_wilsons_interval():
    rows = report_of(TWO)["rows"]
    assert {name: one["value"] for name, one in rows["merge"].items() if name != "pictures"} == {
        "success": 0.5, "CLIP-I": 0.5, "seconds": 3, "diversity": 0.5,
    }  # fmt: skip
    assert rows["auto"]["success"] == Share.of([True, True]).rounded()
    assert rows["auto"]["success"]["low"] < 0.5 < rows["auto"]["success"]["high"]


def test_differences_to_the_first_row_are_paired():
    over = report_of(TWO)["over merge"]["auto"]
    assert over["seconds"] == {"value": 1, "low": 1, "high": 1, "count": 2}
    assert (over["success"]["value"], over["CLIP-I"]["value"]) == (0.5, 0)


def test_rows_that_ask_something_else_are_not_compared():
    report = report_of(found(("milo", "a", 1, {"CLIP-I": 0.1}), ("rex", "b", 1, {"CLIP-I": 0.2})))
    assert report["over milo"] == {}


def test_the_worst_come_first_and_what_has_no_such_score_last():
    several = found(
        ("x", "p", 1, {"CLIP-margin": 0.5}), ("x", "q", 2, {"CLIP-drift": 0.1}), ("x", "p", 3, {"CLIP-margin": -0.5})
    )
    assert main_score(several) == "CLIP-margin"
    assert [one.seed for one in worst_first(several)] == [3, 1, 2]
    assert main_score(found(("x", "p", 1, {"sharpness": 3.0}))) is None


def test_csv_has_a_line_for_each_picture_and_gaps_where_there_is_no_score():
    several = found(("x", "a, b", 1, {"CLIP-I": 0.5}), ("y", "p", 2, {"sharpness": 3.0}))
    rows = list(csv.DictReader(io.StringIO(as_csv(several))))
    assert [(row["prompt"], row["CLIP-I"], row["sharpness"]) for row in rows] == [("a, b", "0.5", ""), ("p", "", "3.0")]


def test_the_best_row_stands_out_where_there_is_one():
    best = best_rows(TWO)
    assert (best["success"], best["seconds"], best["diversity"]) == (["auto"], ["merge"], ["merge"])
    assert best["CLIP-I"] == []


def test_scores_stand_in_one_order():
    assert scores_of(TWO) == ["success", "CLIP-I", "diversity", "seconds"]


def test_a_mean_is_no_share_even_where_all_its_values_are_0_or_1():
    rows = report_of(found(*(("x", "p", n, {"CLIP-I": 1.0, "seconds": 1}) for n in range(4))))["rows"]
    assert [(rows["x"][name]["low"], rows["x"][name]["high"]) for name in ("CLIP-I", "seconds")] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("name", ["success", "leak"])
def test_none_of_many_is_not_none_at_all(name: str):
    rows = report_of(found(*(("x", "p", n, {name: 0.0}) for n in range(40))))["rows"]
    assert rows["x"][name]["high"] > 0.05
