from dataclasses import replace

import pytest
import torch

from studio.events import silent
from studio.judge import Gallery, Judge
from studio.picturebook import SAMPLE_SUBJECTS
from studio.pipelines import compose_bench
from studio.pipelines.bench_store import Result, Store
from studio.pipelines.compose_arms import YARDSTICKS, Arm, Known, arms_of, draw_and_mark, layout_of
from studio.pipelines.compose_bench import ComposeBench, bench_compose, groups_of, same_class
from studio.pipelines.compose_report import difference, section_report, sections_of
from studio.pipelines.methods import METHODS
from studio.pipelines.protocols import in_a_row
from studio.pipelines.scores import Marks

PLAN = ComposeBench(seeds=4, steps=1)
ARMS = [*YARDSTICKS, *arms_of(["merge", "regional"])]
NAMES = list(SAMPLE_SUBJECTS)


@pytest.fixture
def known(tiny_concepts) -> dict[str, Known]:
    milo, rex = tiny_concepts
    every = {"milo": milo, "rex": rex, "luna": replace(milo, name="luna")}
    return {name: Known(one, SAMPLE_SUBJECTS[name]) for name, one in every.items()}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load("B")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every (arm, count of pictures) that is drawn."""
    seen = []

    def watched(base, judge, gallery, arm, ask):
        seen.append((arm.name, len(ask.seeds)))
        return draw_and_mark(base, judge, gallery, arm, ask)

    subjects = [SAMPLE_SUBJECTS[name] for name in ("milo", "rex", "luna")]
    small = Gallery(Judge.load("B"), subjects)
    monkeypatch.setattr(compose_bench, "gallery_of", lambda judge, subject: small)
    monkeypatch.setattr(compose_bench, "draw_and_mark", watched)
    return seen


def test_all_are_measured_once_and_true_drawings_succeed(base, judge, known, drawn, tmp_path):
    groups = [(known["milo"], known["rex"]), (known["milo"], known["luna"])]
    store = Store(tmp_path)
    found = bench_compose(base, judge, groups, ARMS, PLAN, store, silent)
    assert len(found) == len({(one.arm, one.group, one.seed) for one in found}) == 5 * 2 * 4
    assert len({one.seed for one in found}) == 2 * 4
    assert {count for _, count in drawn} == {1}  # four scenes take turns
    reports = {name: section_report(several) for name, several in sections_of(found).items()}
    assert list(reports) == ["pairs", "pairs of one class"]
    assert [len(report["groups"]) for report in reports.values()] == [2, 1]
    pairs = reports["pairs"]
    assert pairs["yardsticks"]["truth"]["success"]["value"] >= 0.75
    assert [pairs["methods"][name]["success"] for name in ("merge", "regional")] == [
        {"value": 0, "low": 0, "high": pytest.approx(0.324, abs=1e-3), "count": 8}
    ] * 2
    drawn.clear()
    again = bench_compose(base, judge, groups, ARMS, PLAN, store, silent)
    assert (again, drawn) == (found, [])
    merge, regional = (next(one for one in found if one.arm == name) for name in ("merge", "regional"))
    assert store.picture(merge).tobytes() != store.picture(regional).tobytes()


def test_what_was_stopped_goes_on_and_what_is_out_of_date_is_drawn_anew(base, judge, known, drawn, tmp_path):
    groups, arms, store = [(known["milo"], known["rex"])], arms_of(["merge"]), Store(tmp_path)
    bench_compose(base, judge, groups, arms, replace(PLAN, seeds=2), store, silent)
    bench_compose(base, judge, groups, arms, PLAN, store, silent)
    assert drawn == [("merge", 1)] * 4
    drawn.clear()
    bench_compose(base, judge, groups, arms, replace(PLAN, seeds=2, steps=2), store, silent)
    assert drawn == [("merge", 1)] * 2
    drawn.clear()
    (pair,) = groups
    retrained = (replace(pair[0], concept=replace(pair[0].concept, folder=pair[1].concept.folder)), pair[1])
    bench_compose(base, judge, [retrained], arms, replace(PLAN, seeds=1), store, silent)
    assert len(drawn) == 1


def test_other_weights_of_the_base_or_the_judge_are_measured_anew(base, judge, known, drawn, tmp_path, monkeypatch):
    groups, arms = [(known["milo"], known["rex"])], arms_of(["merge"])
    plan, store = replace(PLAN, seeds=1), Store(tmp_path)
    bench_compose(base, judge, groups, arms, plan, store, silent)
    drawn.clear()
    bench_compose(base, judge, groups, arms, plan, store, silent)
    assert drawn == []
    bench_compose(base, Judge.load("A"), groups, arms, plan, store, silent)
    assert drawn == [("merge", 1)]
    with torch.no_grad():
        decoder = next(base.vae.decoder.parameters())
        monkeypatch.setattr(decoder, "data", decoder + 0.1)
    bench_compose(base, judge, groups, arms, plan, store, silent)
    assert drawn == [("merge", 1)] * 2


def test_seeds_of_one_scene_are_one_batch(base, judge, known, drawn, tmp_path):
    plan = replace(PLAN, scenes=(("night", "flat"), ("sand", "flat")), seeds=5)
    bench_compose(base, judge, [(known["milo"], known["rex"])], arms_of(["merge"]), plan, Store(tmp_path), silent)
    assert drawn == [("merge", 3), ("merge", 2)]


def test_triples_are_measured_in_thirds(base, judge, known, drawn, tmp_path):
    """By what needs no place in the prompt: the tiny base reads few words."""
    arms = [*YARDSTICKS, *arms_of(["merge"])]
    store = Store(tmp_path)
    found = bench_compose(base, judge, [tuple(known.values())], arms, replace(PLAN, seeds=2), store, silent)
    assert [len(one.marks.in_place) for one in found] == [3] * 8
    assert all(one.marks.success for one in found if one.arm == "truth")
    sizes = {one.arm: store.picture(one).size for one in found}
    assert sizes["truth"] == (144, 96)
    native = base.native_size
    assert sizes["base"] == sizes["merge"] == (native[0] * 3 // 2, native[1])
    (section,) = sections_of(found).items()
    assert section[0] == "triples"
    assert set(section_report(section[1])["methods"]["merge"]["by concept"]) == {"milo", "rex", "luna"}


def test_groups_are_all_with_the_hardest_pairs_first():
    pairs = groups_of(NAMES, 2)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 28
    assert [same_class(pair) for pair in pairs] == [True] * 3 + [False] * 25
    assert len({frozenset(three) for three in groups_of(NAMES, 3)}) == 56
    few = groups_of(["rex", "milo", "luna"], 2)
    assert few == [pair for pair in pairs if set(pair) <= {"rex", "milo", "luna"}]
    assert 8 <= sum(pair[0] < pair[1] for pair in pairs) <= 20


def test_methods_that_look_at_boxes_get_them(known, monkeypatch):
    monkeypatch.setitem(METHODS, "both", replace(METHODS["regional"], name="both", boxes="uses"))
    assert [(arm.name, arm.boxes) for arm in arms_of(["merge", "both", "regional"])] == [
        ("merge", False), ("both", False), ("both+boxes", True), ("regional", True),
    ]  # fmt: skip
    assert [(arm.name, arm.boxes) for arm in arms_of(["freefuse", "lora-composer"])] == [
        ("freefuse", False), ("freefuse-authors", False), ("lora-composer", True), ("lora-composer-authors", True),
    ]  # fmt: skip
    sides = [box.sides for box in layout_of(list(known.values())).boxes.values()]
    assert [(round(3 * left, 9), round(3 * right, 9)) for left, _, right, _ in sides] == [(0, 1), (1, 2), (2, 3)]


def test_prompts_say_who_stands_where():
    assert in_a_row(["a"]) == "a"
    assert in_a_row(["a", "b"]) == "a on the left and b on the right"
    assert in_a_row(["a", "b", "c"]) == "a on the left, b in the middle and c on the right"


def result(arm: str, group: tuple[str, ...], seed: int, marks: str) -> Result:
    """Marks as "11-": who is in place; "!": and the second has taken on a pattern; "-": before another background."""
    own = tuple(mark == "1" for mark in marks if mark in "01")
    pattern = (((), ()), (("pattern",) if "!" in marks else (), ()))
    margins = tuple(0.5 if one else -0.5 for one in own)
    leaks = () if arm in ("base", "alone") else pattern
    return Result(arm, group, seed, "", Marks(own, margins, own, leaks, "-" not in marks))


MILO_REX, REX_BELLA = ("milo", "rex"), ("rex", "bella")


def results(arm: str, first: list[str], second: list[str]) -> list[Result]:
    rows = ((MILO_REX, first), (REX_BELLA, second))
    return [result(arm, group, n, mark) for group, marks in rows for n, mark in enumerate(marks)]


FOUND = [
    *results("truth", ["11"] * 4, ["11"] * 4),
    *results("base", ["11", "11", "11", "01"], ["11", "11", "00", "10"]),
    *results("alone", ["11", "10", "11", "10"], ["11", "11", "11", "01"]),
    *results("merge", ["11", "01", "00", "10"], ["00"] * 4),
    *results("composite", ["11", "11", "10", "11-"], ["11!", "10", "00", "11"]),
    *results("regional", ["11", "11", "11", "10"], ["11", "11", "11", "11"]),
]


def test_the_report_is_what_a_hand_counts():
    report = section_report(FOUND)
    assert report["groups"] == ["milo+rex", "rex+bella"]
    assert report["ceiling"]["value"] == round((3 / 4 * 4 / 4 * 2 / 4 + 2 / 4 * 3 / 4 * 4 / 4) / 2, 3)
    methods = report["methods"]
    assert [methods[name]["success"]["value"] for name in methods] == [1 / 8, 3 / 8, 7 / 8]
    row = methods["composite"]
    assert (row["all in place"]["value"], row["leak"]["value"], row["background"]["value"]) == (5 / 8, 1 / 8, 7 / 8)
    assert (row["in place"]["value"], row["margin"]["value"]) == (12 / 16, 0.25)
    assert row["by group"] == {"milo+rex": 0.5, "rex+bella": 0.25}
    assert row["by concept"]["rex"]["in place"] == {**row["by concept"]["rex"]["in place"], "value": 6 / 8, "count": 8}
    assert row["leaks"]["matrix"] == {"bella": {"rex": 0}, "milo": {"rex": 0}, "rex": {"bella": 0.25, "milo": 0}}
    assert row["leaks"]["fields"] == {"pattern": round(1 / 16, 3)}
    assert row["share of the ceiling"] == round(0.375 / 0.375, 3)
    assert report["best of the published"] == "composite"


def test_methods_with_settings_of_ours_do_not_count_as_published():
    ours, theirs = (results(name, [mark] * 4, [mark] * 4) for name, mark in
                    (("lora-composer", "11"), ("lora-composer-authors", "00")))  # fmt: skip
    report = section_report([*FOUND, *ours, *theirs])
    assert (report["best of the published"], report["best as published"]) == ("lora-composer", "composite")
    over = report["methods"]["regional"]
    assert over["over the best of the published"]["value"] == -1 / 8
    assert over["over the best as published"]["value"] == 4 / 8


def test_differences_are_paired():
    report = section_report(FOUND)
    assert list(report["differences"]) == ["composite - merge", "regional - merge", "regional - composite"]
    found = report["differences"]["regional - merge"]
    assert (found["value"], found["low"], found["high"], found["count"]) == (0.75, 0.5, 1.0, 8)
    assert report["methods"]["regional"]["over merge"] == found
    assert report["methods"]["regional"]["over the best of the published"]["value"] == 0.5
    assert "over merge" not in report["methods"]["merge"]
    merge, regional = ([one for one in FOUND if one.arm == arm] for arm in ("merge", "regional"))
    assert difference(regional[:5], merge[2:]).count == 3
    assert difference(merge, merge).high == 0


def test_a_yardstick_is_no_method():
    assert Arm("truth") in YARDSTICKS
    assert set(section_report(FOUND)["yardsticks"]) == {"truth", "base", "alone"}
