import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from small_world import shrink

from studio.picturebook import SAMPLE_SUBJECTS
from studio.ui.cmd_bench_compose import _asked


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tiny_sdxl: Path, tmp_path: Path) -> Path:
    return shrink(monkeypatch, tiny_sdxl, tmp_path / "base")


def test_base_gives_shares_with_counts_seeds_and_the_judges_own(run_studio, small: Path, tmp_path: Path):
    arguments = ["bench", "base", "--singles", "3", "--pairs", "2", "--steps", "1", "--out", tmp_path / "out"]
    said = run_studio(*arguments, "--json")
    report = json.loads(said.out)
    assert report["plan"] == {"singles": 3, "pairs": 2, "seed": 5_000_000, "steps": 1, "guidance": 2.5}
    assert report["one subject"]["class"]["count"] == 3
    assert set(report["two subjects"]["class left"]) == {"value", "low", "high", "count", "on_renders"}
    assert json.loads((tmp_path / "out" / "base.json").read_text())["plan"] == report["plan"]
    assert Image.open(tmp_path / "out" / "base.png").width > 16 * 32
    assert "background" in run_studio(*arguments).out


def test_what_no_drawn_scene_has_is_no_question(run_studio, small: Path):
    """The one subject of this seed is plain."""
    said = run_studio("bench", "base", "--singles", "1", "--pairs", "1", "--steps", "1", "--seed", "5000003", "--json")
    assert list(json.loads(said.out)["one subject"]) == ["class", "colour", "pattern", "background", "style"]


def test_blocks_gives_a_row_a_block(run_studio, small: Path):
    report = json.loads(run_studio("bench", "blocks", "--count", "2", "--json").out)
    assert {"none", "pooled embedding", "all of up_blocks.0"} < set(report["follows"])
    assert any(name.startswith("mid_block.attentions") for name in report["follows"])


@pytest.mark.slow
def test_concepts_are_trained_where_missing_and_summed_up(run_studio, small: Path):
    arguments = ["bench", "concepts", "--names", "milo,rex", "--preset", "quick", "--seeds", "1", "--json"]
    report = json.loads(run_studio(*arguments).out)
    assert set(report["concepts"]) == {"milo", "rex"}
    assert report["overall"]["identity"]["count"] == 8
    hits = [round(4 * one["background obeyed"]["value"]) for one in report["concepts"].values()]
    assert report["overall"]["background obeyed"]["value"] == sum(hits) / 8
    assert "reused" in run_studio(*arguments).err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["concepts", "--names", "milo,rox"], "no sample concept 'rox'"),
        (["concepts", "--preset", "fast"], "no preset 'fast'"),
        (["base", "--singles", "0"], "singles"),
        (["base", "--out", __file__], "is a file"),
        (["best-of", "--names", "milo"], "alone is no pair"),
        (["metrics", "--names", "milo"], "alone is no pair"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(run_studio, small: Path, arguments: list[str], words: str):
    said = run_studio("bench", *arguments)
    assert (said.code, words in said.err) == (2, True)


def test_what_was_measured_is_kept_where_it_cannot_be_shown(run_studio, small: Path, tmp_path: Path, monkeypatch):
    def closed(*told: object) -> None:
        raise BrokenPipeError

    found = {"a base": {"an arm": {"s": 1.0}}}
    monkeypatch.setattr("studio.trainers.step_bench.bench_steps", lambda bench, emit: found)
    monkeypatch.setattr("studio.ui.cmd_bench.show", closed)
    run_studio("bench", "train", "--script", __file__, "--out", str(tmp_path))
    assert json.loads((tmp_path / "training-step.json").read_text()) == found


def test_judges_measures_both_on_drawings_before_and_after_the_vae(run_studio, small: Path):
    few = ("bench", "judges", "--count", "2")
    found = json.loads(run_studio(*few, "--json").out)
    for which in ("A", "B"):
        for part in ("renders", "reconstructions"):
            assert found[which][part]["whole_kind"]["count"] == found[which][part]["half_kind"]["count"] == 4
            assert found[which][part]["identity"]["count"] == len(SAMPLE_SUBJECTS)
    lines = run_studio(*few).out.splitlines()
    assert any("they agree: kind" in line for line in lines)
    assert any("renders: half_colour" in line for line in lines)


def test_a_method_asked_for_twice_is_one():
    assert _asked("merge,regional,merge", ablation=False) == ["merge", "regional"]


COMPOSE = ("bench", "compose", "--names", "milo,rex", "--seeds", "2", "--steps", "1")


@pytest.fixture
def learned(small: Path, tiny_concepts, monkeypatch: pytest.MonkeyPatch) -> None:
    """milo and rex have been learned on the tiny base."""
    found = [SimpleNamespace(sample=c.name, concept=c, subject=SAMPLE_SUBJECTS[c.name]) for c in tiny_concepts]
    monkeypatch.setattr("studio.ui.cmd_bench_compose.learn_samples", lambda *_: found)


def test_compose_measures_methods_and_costs_and_goes_on(run_studio, learned, tmp_path: Path):
    out = ("--out", tmp_path / "out", "--json")
    report = json.loads(run_studio(*COMPOSE, "--methods", "merge", "--rounds", "1", *out).out)
    (section,) = report["sections"].values()
    assert (section["groups"], set(section["methods"])) in ((["milo+rex"], {"merge"}), (["rex+milo"], {"merge"}))
    assert section["methods"]["merge"]["success"]["count"] == 2
    assert report["costs"]["methods"]["merge"]["rows"] == 2
    assert json.loads((tmp_path / "out" / "compose.json").read_text()) == report
    assert Image.open(tmp_path / "out" / "compose-pairs.png").height > 3 * 32
    kept = sorted((tmp_path / "out").rglob("*.jsonl"))
    before = [file.stat().st_mtime_ns for file in kept]
    assert [file.parent.name for file in kept] == ["alone", "base", "merge", "truth"]
    again = json.loads(run_studio(*COMPOSE, "--methods", "merge,regional", "--rounds", "0", *out).out)
    assert [file.stat().st_mtime_ns for file in kept] == before
    (section,) = again["sections"].values()
    assert list(section["differences"]) == ["regional - merge"]
    said = run_studio(*COMPOSE, "--methods", "merge,regional", "--rounds", "0", "--out", tmp_path / "out").out
    rows = [line.split()[0] for line in said.splitlines()[1:]]
    assert rows == ["truth", "base", "alone", "ceiling", "merge", "regional"]


def test_costs_are_those_of_a_pair(run_studio, learned, tiny_concepts, tmp_path: Path, monkeypatch):
    both = [SimpleNamespace(sample=c.name, concept=c, subject=SAMPLE_SUBJECTS[c.name]) for c in tiny_concepts]
    luna = replace(tiny_concepts[0], name="luna")
    found = [*both, SimpleNamespace(sample="luna", concept=luna, subject=SAMPLE_SUBJECTS["luna"])]
    asked: list[int] = []

    def costs(base, ask, arms, rounds, emit):
        asked.append(len(ask.members))
        return {one.name: {"rows over merge": 1.0, "time over merge": {"value": 1.0}} for one in arms}

    monkeypatch.setattr("studio.ui.cmd_bench_compose.learn_samples", lambda *_: found)
    monkeypatch.setattr("studio.pipelines.compose_cost.method_costs", costs)
    order = [one if one != "milo,rex" else "milo,rex,luna" for one in COMPOSE]
    order += ["--methods", "merge", "--rounds", "1", "--json", "--out", str(tmp_path / "out")]
    of_three = json.loads(run_studio(*order, "--pairs", "0", "--triples", "1").out)
    of_two = json.loads(run_studio(*order, "--pairs", "1", "--triples", "0").out)
    assert (of_three["costs"], asked) == ({}, [2])
    before = of_two["costs"]["made_from"]
    assert json.loads(run_studio(*order, "--pairs", "1", "--triples", "0").out)["costs"]["made_from"] == before
    run_studio(*order, "--pairs", "2-2", "--triples", "0")
    assert asked == [2, 2]


def test_ablation_measures_auto_with_each_part_left_out(run_studio, learned, tmp_path: Path):
    ablated = [one if one != "1" else "2" for one in COMPOSE]  # one step of the base, one of the adapters
    report = json.loads(run_studio(*ablated, "--ablation", "--out", tmp_path / "out", "--json").out)
    (section,) = report["sections"].values()
    assert list(section["methods"]) == ["auto", "auto+boxes", *report["parts"]]
    assert {f"{name} - auto" for name in report["parts"]} < set(section["differences"])
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == report
    assert [one.name for one in (tmp_path / "out").glob("*.png")] == ["ablation-pairs.png"]  # that of methods is left


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs", "some"], "neither a number nor a range"),
        (["--pairs", "7-3"], "neither a number nor a range"),
        (["--pairs", "5-9"], "no pair or triple"),
        (["--scenes", "night/flat,moon/flat"], "no scene 'moon/flat'"),
        (["--methods", "merge,auot"], "no method 'auot'"),
        (["--methods", "regional"], "beside those of merge"),
        (["--methods", "merge", "--ablation"], "--ablation is about auto alone"),
        (["--names", "milo,rox"], "no sample concept 'rox'"),
        (["--methods", "merge,switch"], "leave no turn for"),
    ],
)
def test_compositions_that_cannot_be_measured_are_refused_at_once(
    run_studio, learned, arguments: list[str], words: str
):
    said = run_studio(*COMPOSE, *arguments)
    assert (said.code, words in said.err) == (2, True)


def test_compose_cost_prints_every_figure_and_keeps_the_report(run_studio, learned, tmp_path: Path, monkeypatch):
    told = {"steps": 3, "ratio": {"value": 0.5, "low": 0.4, "high": 0.625}, "memory": {"peak MB": {"1": 2.5}}}
    asked = []

    def bench(base, other, concepts, steps, rounds, emit):
        asked.append((base.unet is other.unet, [one.name for one in concepts], steps, rounds))
        return told

    def beside(base, count, rank):
        return {"asked": f"{count} of {rank}", "width": base.unet.config["block_out_channels"][0]}

    monkeypatch.setattr("studio.pipelines.engine_bench.bench_engine", bench)
    monkeypatch.setattr("studio.pipelines.engine_bench.memory_beside", beside)
    monkeypatch.setattr("studio.pipelines.random_bases.HALF_WIDE", {"block_out_channels": [16, 16, 32]})
    said = run_studio("bench", "compose-cost", "--steps", "3", "--rounds", "2", "--out", tmp_path / "out").out
    assert asked == [(False, ["milo", "rex"], 3, 2)]
    larger = [f"memory beside a larger base: {name}" for name in ("asked", "width")]
    assert told["memory beside a larger base"] == {"asked": "5 of 16", "width": 16}
    assert [line.split("  ")[0].strip() for line in said.splitlines()[1:]] == [
        "steps", "ratio", "memory: peak MB: 1", *larger,
    ]  # fmt: skip
    assert "0.50 [0.40, 0.62]" in said
    assert json.loads((tmp_path / "out" / "compose-cost.json").read_text()) == told
