"""Every convention of adapter files, loaded onto a tiny base: the output is that of the dense change."""

from pathlib import Path

import pytest
from adapter_zoo import ROWS
from adapter_zoo_bases import build_bases, build_case, far, outputs

from studio.adapters import load_adapter
from studio.attaching import attach

DOCUMENT = Path(__file__).parents[1] / "docs" / "formats.md"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return build_bases(tmp_path_factory.mktemp("zoo-bases"))


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_the_output_is_that_of_the_dense_change(row, bases, tmp_path):
    case = build_case(row, bases[row.family], tmp_path)
    adapter = load_adapter(case.file, allow_pickle=True)
    with attach(case.base, [(adapter, 1.0)]) as (receipt,):
        got = outputs(case.base)
    effect = far(case.truth, case.plain)
    assert receipt.unmatched == {}
    assert [one for one in receipt.unread if "a row for each layer" not in one] == []  # ED-LoRA's words
    assert effect > 1e-2
    assert far(got, case.truth) <= 1e-5 * effect


def test_the_document_has_every_row():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [row.name for row in ROWS if f"\n| {row.name} |" not in text] == []
