import json
from math import inf, nan

import pytest
import torch

from studio.errors import UsageError
from studio.regions import Box, Layout, parse_box, read_layout


def test_a_box_owns_the_cells_whose_centre_it_holds():
    masks = Layout({"milo": Box(0, 0.25, 0.5, 1)}).masks(["milo", "rex"], 4, 6)
    assert masks[0].tolist() == [[0] * 6] + [[1, 1, 1, 0, 0, 0]] * 3
    assert masks[1].abs().max() == 0


@pytest.mark.parametrize("size", [(12, 12), (13, 7), (3, 5)])
def test_halves_never_share_a_cell_nor_leave_one(size):
    masks = Layout({"a": Box(0, 0, 0.5, 1), "b": Box(0.5, 0, 1, 1)}).masks(["a", "b"], *size)
    assert torch.equal(masks.sum(0), torch.ones(size))


def test_where_boxes_overlap_the_later_is_in_front():
    masks = Layout({"a": Box(0, 0, 1, 1), "b": Box(0.5, 0, 1, 1)}).masks(["a", "b"], 2, 4)
    assert masks[0, 0].tolist() == [1, 1, 0, 0]
    assert masks[1, 0].tolist() == [0, 0, 1, 1]
    with pytest.raises(UsageError, match="<a> is wholly covered"):
        Layout({"a": Box(0, 0, 0.5, 1), "b": Box(0, 0, 1, 1)}).masks(["a", "b"], 2, 4)


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ((0, 0, 1.2, 1), "beyond the canvas"), ((-0.1, 0, 1, 1), "beyond the canvas"), ((0.5, 0, 0.5, 1), "empty"),
        ((0.6, 0, 0.2, 1), "upside down"), ((0, nan, 1, 1), "something else"), ((0, 0, inf, 1), "something else"),
    ],
)  # fmt: skip
def test_boxes_that_cannot_be(sides, said):
    with pytest.raises(UsageError, match=said):
        Box(*sides)


def test_a_box_smaller_than_a_cell():
    with pytest.raises(UsageError, match="smaller than a cell of the 12 x 12 grid"):
        Layout({"a": Box(0, 0, 0.01, 1)}).masks(["a"], 12, 12)


def test_reading(tmp_path):
    assert parse_box("milo=0,.2,0.5,1") == ("milo", Box(0, 0.2, 0.5, 1))
    for text in ("milo", "milo=1,2,3", "milo=a,b,c,d", "=0,0,1,1"):
        with pytest.raises(UsageError, match="no box"):
            parse_box(text)
    file = tmp_path / "layout.json"
    file.write_text(json.dumps({"milo": [0, 0, 0.5, 1]}))
    assert read_layout(file) == Layout({"milo": Box(0, 0, 0.5, 1)})
    for content, said in (("[]", "names no box"), ('{"a": [1]}', "the box of 'a'"), ("{", "no JSON")):
        file.write_text(content)
        with pytest.raises(UsageError, match=said):
            read_layout(file)
    with pytest.raises(UsageError, match="Cannot read"):
        read_layout(tmp_path / "none.json")


def test_boxes_that_share_ground_overlap_and_edges_do_not():
    boxes = {"a": Box(0, 0, 0.5, 1), "b": Box(0.5, 0, 1, 1), "c": Box(0.4, 0.4, 0.6, 0.6), "d": Box(0, 0.9, 1, 1)}
    assert Layout(boxes).overlaps() == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]


def test_a_layout_with_two_boxes_for_one_concept_is_refused(tmp_path):
    (tmp_path / "l.json").write_text('{"milo": [0, 0, 0.5, 1], "milo": [0.5, 0, 1, 1]}')
    with pytest.raises(UsageError, match="more than one box for 'milo'"):
        read_layout(tmp_path / "l.json")
