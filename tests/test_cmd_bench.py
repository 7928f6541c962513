import json
from pathlib import Path

import pytest
from PIL import Image
from small_world import shrink


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
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(run_studio, small: Path, arguments: list[str], words: str):
    said = run_studio("bench", *arguments)
    assert (said.code, words in said.err) == (2, True)


def test_judges_prints_what_was_measured_when_they_were_trained(run_studio, small: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "judges").mkdir()
    monkeypatch.setattr("studio.ui.cmd_bench.files", lambda package: tmp_path)
    assert run_studio("bench", "judges").code == 1
    for which, share in (("A", 0.75), ("B", 0.5)):
        (tmp_path / "judges" / f"{which}.json").write_text(json.dumps({"steps": 9, "renders": {"whole_kind": share}}))
    few = ("bench", "judges", "--count", "2")
    assert json.loads(run_studio(*few, "--json").out)["B"]["renders"]["whole_kind"] == 0.5
    lines = run_studio(*few).out.splitlines()
    assert any("they agree: kind" in line for line in lines)
    row = next(line for line in lines if "whole_kind" in line)
    assert row.split()[-2:] == ["0.750", "0.500"]
