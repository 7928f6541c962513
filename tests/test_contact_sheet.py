import pytest
from PIL import Image

from studio.pipelines.contact_sheet import GAP, LINE, contact_sheet


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
