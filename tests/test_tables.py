"""The documents' tables say what was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from studio.errors import StudioError
from studio.picturebook import SAMPLE_SUBJECTS
from studio.pipelines import bench_tables as tables
from studio.pipelines.bench_documents import command_of, filled, made, read_reports
from studio.ui.cmd_bench import app

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks"
DOCUMENTS = [
    file.relative_to(ROOT).as_posix()
    for file in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("assets/*/*.md"))
    if any(f"<!-- {name} -->" in file.read_text(encoding="utf-8") for name in tables.TABLES)
]
BLOCKS = {"judge": "B", "pairs": 3, "follows": {"none": {"kind": 0.125}, "mid_block": {"kind": 1}}}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_table_is_made_from_the_benchmarks(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == filled(text, read_reports(BENCHMARKS)), "a table differs: make tables"


def test_every_report_has_its_table_in_a_document():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    assert [name for name in read_reports(BENCHMARKS) if f"<!-- {name} -->" not in text] == []


def test_a_table_is_replaced_and_nothing_around_it():
    made = filled("before\n<!-- blocks -->\nold\n<!-- /blocks -->\nafter", {"blocks": BLOCKS})
    assert made.startswith("before\n<!-- blocks -->\n| text swapped in | kind |\n| --- | --- |\n| none | 0.12 |")
    assert made.endswith("<!-- /blocks -->\nafter")
    assert "old" not in made


def test_the_command_prints_tables_and_fills_documents(run_studio, tmp_path: Path):
    (tmp_path / "blocks.json").write_text(json.dumps(BLOCKS))
    document = tmp_path / "page.md"
    document.write_text("<!-- blocks --><!-- /blocks -->")
    assert "| mid_block | 1.00 |" in run_studio("bench", "report", tmp_path).out
    assert run_studio("bench", "report", tmp_path, "--fill", document).code == 0
    assert "| mid_block | 1.00 |" in document.read_text()


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_folder_without_a_sound_report_is_told(run_studio, tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "blocks.json").write_text(content)
    ended = run_studio("bench", "report", tmp_path)
    assert ended.code == 1
    assert "report" in ended.err or "blocks.json" in ended.err


def test_a_document_whose_report_is_missing_stays_as_it_is(tmp_path: Path):
    with pytest.raises(StudioError, match=r"base\.json"):
        filled("<!-- base --><!-- /base -->", {"blocks": BLOCKS})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- blocks -->\nold\n", "blocks has no end"),
        ("<!-- blocks -->\nold\n<!-- /bloks -->", "blocks has no end"),
        ("<!-- bloks -->\nold\n<!-- /bloks -->", "begins no table"),
        ("<!-- /blocks -->\nold\n", "begins no table"),
    ],
)
def test_marks_that_are_none_of_a_table_are_refused(text: str, words: str):
    with pytest.raises(StudioError, match=words):
        filled(text, {"blocks": BLOCKS})


def test_a_document_that_is_not_there_is_wrong_usage(run_studio, tmp_path: Path):
    (tmp_path / "blocks.json").write_text(json.dumps(BLOCKS))
    assert run_studio("bench", "report", tmp_path, "--fill", tmp_path / "none.md").code == 2


def test_every_command_that_measures_a_report_is_one():
    known = {one.name for one in app.registered_commands}
    commands = [command_of(name) for name in tables.TABLES]
    assert {one.split()[2] for one in commands if one.startswith("studio bench")} <= known
    assert command_of("compiled-sdxl-tenth") == "studio bench step --shape sdxl-tenth --compiled"


def test_a_report_of_costs_without_its_gates_is_told():
    report = {
        "cmlora over composite": {"time": share(0.8), "FLOPs": 0.7}, "change of gate": {}, "memory": {},
        "composite over set_adapters": share(0.4), "their largest difference": 2e-6,
    }  # fmt: skip
    with pytest.raises(StudioError, match="gated over 1"):
        made("compose-cost", report)


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def test_compositions_stand_beside_their_ceiling_and_their_cost():
    row = {"success": share(0.5), "all in place": share(0.6), "background": share(0.9), "leak": share(0.2)}
    over = row | {"share of the ceiling": 0.75, "over merge": share(0.3)}
    cost = {"rows over merge": 1.0, "time over merge": share(1.5)}
    section = {
        "groups": ["a+b"], "yardsticks": {"truth": row}, "ceiling": share(0.7),
        "methods": {"merge": row | {"share of the ceiling": 0.5}, "regional": over},
    }  # fmt: skip
    plan = {"seeds": 8, "steps": 25, "guidance": 2.5, "scenes": [["night", "flat"]]}
    costs = {"methods": {"merge": cost, "regional": cost}}
    report = {"sections": {"pairs": section}, "costs": costs, "plan": plan, "judge": "B", "asked": {}}
    lines = tables.compose(report).splitlines()
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert lines[0].startswith("| pairs: 1 | success |")
    assert lines[3].startswith("| ceiling | 0.70 [0.60, 0.80] | ")
    assert lines[5] == (
        "| `regional` | 0.50 [0.40, 0.60] | 0.75 | 0.60 | 0.20 | 0.90 | 0.30 [0.20, 0.40] | 1.00 | 1.50 |"
    )


def test_the_command_is_the_one_that_measured():
    plan = {"seeds": 8, "steps": 25, "guidance": 2.5, "scenes": [["night", "flat"]]}
    asked = {"names": None, "pairs": "20", "triples": "0", "methods": "merge,auto"}
    report = {"sections": {}, "costs": {}, "plan": plan, "judge": "B", "asked": asked}
    assert "`studio bench compose --pairs 20 --triples 0 --methods merge,auto` measures it" in tables.compose(report)
    learned = {"judge": "B", "preset": "quick", "settings": {"rank": 4}, "seeds": 1, "concepts": {}, "overall": {}}
    learned["overall"] = {key: share(0.5) for key in (
        "identity", "identity of true drawings", "identity of the untrained base", "background obeyed", "leak",
        "leak of the untrained base",
    )}  # fmt: skip
    made_of = tables.concepts(learned)
    assert "Preset 'quick', rank 4, four new scenes" in made_of
    assert "`studio bench concepts --preset quick --config` measures it again." in made_of


@pytest.mark.parametrize(("steps", "ended"), [(100, 0), (200, 1)])
def test_recipes_are_joined_where_only_size_and_rate_differ(tmp_path: Path, steps: int, ended: int):
    one = {"identity": share(0.5) | {"count": 32}, "bytes": 9}
    for name, settings in (("a", {"factors": [4, 4], "steps": 100}), ("b", {"rank": 8, "steps": steps})):
        told = {"judge": "B", "preset": "normal", "seeds": 8, "settings": settings | {"learning_rate": 0.01}}
        (tmp_path / name).write_text(json.dumps(told | {"concepts": dict.fromkeys(SAMPLE_SUBJECTS, one)}))
    order = [sys.executable, ROOT / "docs" / "krona.py", *(tmp_path / name for name in ("out", "a", "b"))]
    joined = subprocess.run(order, capture_output=True, text=True, check=False)
    assert (joined.returncode, "differs" in joined.stderr) == (ended, bool(ended))
    if not ended:
        found = json.loads((tmp_path / "out").read_text())["differences"]
        assert list(found) == ["KronA, 4 x 4 at 0.01 - LoRA, rank 8 at 0.01"]


def test_costs_of_adapters_stand_beside_what_they_may_be():
    report = {
        "composed": 5, "steps": 25, "rounds": 7, "composite over set_adapters": share(0.4),
        "their largest difference": 2e-6, "cmlora over composite": {"time": share(0.8), "FLOPs": 0.7},
        "8 gated over 1": share(1.2),
        "memory": {
            "rows": 10, "peak over that of 1": 1.1, "each more, times its file": 2.0,
            "weight-shaped tensors an adapter": 0.0,
        },
        "memory beside a larger base": {"peak over that of 1": 1.06},
        "change of gate": {"made and set, ms": 0.2, "more in its first forward, ms": 0.5, "set_adapters, ms": 90.0},
    }  # fmt: skip
    lines = tables.compose_cost(report).splitlines()
    assert lines[2] == "| `composite` over the loop of `set_adapters`, time | 0.40 [0.30, 0.50] | 0.50 |"
    assert "| 8 gated over 1, time | 1.20 [1.10, 1.30] | 1.25 |" in lines


def test_krona_stands_beside_lora():
    one = share(0.5) | {"bytes": 1_530_000, "count": 32}
    both = {"samples": {"luna": one, "milo": one}, "all": share(0.5)}
    recipes = [{"recipe": "KronA, 4 x 4", "rate": 0.012, **both}, {"recipe": "LoRA, rank 8", "rate": 0.004, **both}]
    made = tables.krona({"recipes": recipes, "differences": {"KronA, 4 x 4 - LoRA, rank 8": share(0.0)}})
    assert made.splitlines()[2] == "| KronA, 4 x 4 | 0.012 | 0.50 | 0.50 | 1.53 | 0.50 [0.40, 0.60] |"
    assert "LoRA, rank 8: 0.00 [-0.10, 0.10]." in made


def test_rates_are_compared_on_what_all_recipes_learned():
    recipes = [
        {"recipe": "KronA, 4 x 4", "rate": 0.012, "samples": {"luna": share(0.5), "milo": share(0.25)}},
        {"recipe": "LoRA, rank 8", "rate": 0.01, "samples": {"milo": share(0.75)}},
    ]
    assert tables.krona_rates({"recipes": recipes}).splitlines()[0] == "|  | rate | milo |"
    assert tables.krona_rates({"recipes": recipes}).splitlines()[3] == "| LoRA, rank 8 | 0.01 | 0.75 |"
