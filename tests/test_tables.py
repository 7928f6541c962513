"""The documents' tables say what was measured."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "docs" / "tables.py"
spec = importlib.util.spec_from_file_location("tables", FILE)
assert spec is not None
assert spec.loader is not None
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


@pytest.mark.parametrize("name", tables.DOCUMENTS)
def test_every_table_is_made_from_the_benchmarks(name: str):
    text = (tables.ROOT / name).read_text(encoding="utf-8")
    assert text == tables.filled(text), "a table differs from docs/benchmarks: make tables"


def test_a_table_is_replaced_and_nothing_around_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "docs" / "benchmarks").mkdir(parents=True)
    (tmp_path / "docs" / "benchmarks" / "blocks.json").write_text(
        '{"judge": "B", "pairs": 3, "follows": {"none": {"kind": 0.125}, "mid_block": {"kind": 1}}}'
    )
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    made = tables.filled("before\n<!-- blocks -->\nold\n<!-- /blocks -->\nafter")
    assert made.startswith("before\n<!-- blocks -->\n| text swapped in | kind |\n| --- | --- |\n| none | 0.12 |")
    assert made.endswith("<!-- /blocks -->\nafter")
    assert "old" not in made
