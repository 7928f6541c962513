import pytest
from PIL import Image

from studio.pipelines.contact_sheet import GAP, LINE, comparison_sheet, contact_sheet


def test_every_picture_has_its_place_below_its_title():
    red, blue = Image.new("RGB", (10, 10), "red"), Image.new("RGB", (10, 10), "blue")
    sheet = contact_sheet({"first": [red, red, blue], "second": [blue]}, columns=2)
    row = LINE + 2 * (10 + GAP) + GAP
    assert sheet.size == (2 * (10 + GAP) + GAP, row + LINE + (10 + GAP) + GAP)
    middles = [(GAP + 5, LINE + 5), (GAP + 19, LINE + 5), (GAP + 5, LINE + 19), (GAP + 5, row + LINE + 5)]
    assert [sheet.getpixel(place) for place in middles] == [(255, 0, 0), (255, 0, 0), (0, 0, 255), (0, 0, 255)]


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        contact_sheet({"empty": []})


def test_a_comparison_has_a_row_a_method_and_a_column_a_thing():
    red, blue, green = (Image.new("RGB", (10, 10), name) for name in ("red", "blue", "green"))
    sheet = comparison_sheet({"a": [red, red, blue], "long": [blue, green, red]}, ["x", "y", "z"], columns=2)
    side, cell = 6 * 4 + 2 * GAP, 10 + GAP
    band = LINE + 2 * cell + GAP
    assert sheet.size == (side + 2 * cell, 2 * band)
    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0)]  # band, row, column
    found = [sheet.getpixel((side + c * cell + 5, b * band + LINE + r * cell + 5)) for b, r, c in places]
    colours = {"r": (255, 0, 0), "b": (0, 0, 255), "g": (0, 128, 0)}
    assert found == [colours[name] for name in "rrbgbr"]
