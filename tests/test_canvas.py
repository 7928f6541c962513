import itertools
import math
import re
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio import regions
from studio.errors import UsageError
from studio.ui import canvas
from studio.ui.canvas import (
    MOST_BOXES,
    MOST_CONCEPTS,
    LayoutCanvas,
    LayoutValue,
    from_layout,
    read_layout_value,
    to_layout,
)
from studio.ui.marks import COLOURS, contrast, marks
from studio.ui.theme import DARK, LIGHT, StudioTheme

LEFT_RIGHT = regions.Layout({"milo": regions.Box(0, 0.2, 0.5, 1), "rex": regions.Box(0.5, 0.2, 1, 1)})
LEGIBLE = 4.5
WEB = Path(str(files("studio.assets"))) / "web"

# Machado, Oliveira and Fernandes (2009), severity 1: linear sRGB as seen without one kind of cone.
SIGHT = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


def _content() -> dict:
    return from_layout(LEFT_RIGHT, ["milo", "rex", "luna"], width=768, height=512).model_dump()


def test_a_layout_comes_back_as_it_went():
    value = from_layout(
        LEFT_RIGHT, ["milo", "rex"], width=768, height=512, labels={"milo": "cat"}, picture="/file=a.png"
    )
    assert to_layout(read_layout_value(value.model_dump())) == LEFT_RIGHT
    assert [choice.label for choice in value.concepts] == ["cat", ""]
    assert to_layout(from_layout(None, ["milo"], width=64, height=64)) is None


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=MOST_BOXES))
def test_any_boxes_come_back_as_near_as_floats_allow(sides):
    boxes = {
        f"c{n}": regions.Box(min(a, c), min(b, d), max(a, c), max(b, d))
        for n, (a, b, c, d) in enumerate(sides)
        if abs(a - c) > 1e-9 and abs(b - d) > 1e-9
    }
    value = from_layout(regions.Layout(boxes), list(boxes), width=512, height=512)
    layout = to_layout(value)
    again = layout.boxes if layout else {}
    assert list(again) == list(boxes)
    for name, box in boxes.items():
        assert again[name].sides == pytest.approx(box.sides, abs=1e-12)


@pytest.mark.parametrize("side", ["x", "y", "w", "h"])
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e99, -0.1, 1.001, "0.5", None, True, [0.1], {}])
def test_a_number_that_is_none_is_refused_by_the_name_of_its_box(side, junk):
    content = _content()
    content["boxes"][1][side] = junk
    with pytest.raises(UsageError) as refused:
        read_layout_value(content)
    assert refused.value.problem.startswith("Box 2, rex: its ")
    assert refused.value.remedy == "Draw it again inside the canvas, or remove it."


@pytest.mark.parametrize(
    ("place", "junk", "says"),
    [
        (("boxes", 0, "w"), 0.0, "Box 1, milo: its width should be greater than 0."),
        (("boxes", 0, "w"), 1.0000001, "Box 1, milo: its width should be less than or equal to 1."),
        (("boxes", 1, "x"), 0.6, "Box 2, rex: it reaches beyond the canvas."),
        (("boxes", 0, "concept"), "rex", "'rex' has more than one box"),
        (("boxes", 0, "concept"), "bella", "bound to 'bella', which is none of the concepts chosen"),
        (("boxes", 0, "concept"), "<script>alert(1)</script>", "which is none of the concepts chosen"),
        (("boxes", 0, "concept"), "m" * 65, "at most 64 characters"),
        (("boxes", 0, "extra"), 1, "Box 1, milo: its form"),
        (("boxes", 0), 7, "Box 1: its form|Box 1: should be"),
        (("boxes",), "junk", "should be a valid list"),
        (("width",), 15, "The layout's width: should be greater than or equal to 16."),
        (("height",), 4097, "less than or equal to 4096"),
        (("height",), 512.5, "The layout's height"),
        (("concepts", 0, "name"), "", "The layout's concepts"),
        (("concepts", 0, "name"), "rex", "listed twice"),
        (("concepts", 0, "letter"), "AB", "The layout's concepts"),
        (("concepts", 0, "colour"), "red;background:url(//evil)", "The layout's concepts"),
        (("picture",), "https://elsewhere.example/a.png", "The layout's picture"),
        (("picture",), "//elsewhere.example/a.png", "The layout's picture"),
        (("picture",), "/\\elsewhere.example/a.png", "The layout's picture"),
        (("picture",), "\t//elsewhere.example/a.png", "The layout's picture"),
        (("picture",), "javascript:alert(1)", "The layout's picture"),
        (("picture",), "data:image/svg+xml;base64,AAAA", "The layout's picture"),
        (("script",), "x", "The layout's script"),
    ],
)
def test_what_is_wrong_is_said(place, junk, says):
    content = _content()
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    with pytest.raises(UsageError, match=says):
        read_layout_value(content)


@pytest.mark.parametrize(
    "picture", ["data:image/png;base64,iVBORw0KGgo=", "/gradio_api/file=C:\\a b.png", "file=a.png"]
)
def test_pictures_of_this_server_are_taken(picture):
    assert read_layout_value(_content() | {"picture": picture}).picture == picture


def test_too_many_are_refused():
    content = _content()
    content["boxes"] *= 10**5
    with pytest.raises(UsageError, match="boxes"):
        read_layout_value(content)
    names = [f"c{n}" for n in range(MOST_CONCEPTS + 1)]
    with pytest.raises(UsageError, match="concepts"):
        from_layout(None, names, width=512, height=512)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["all", "width", "concepts", "boxes", "box", "choice", "x", "concept", "picture"]))
def test_junk_anywhere_is_refused_in_words_or_is_a_layout(junk, where):
    content = _content()
    boxes, concepts = content["boxes"], content["concepts"]
    inside = {"box": (boxes, 0), "choice": (concepts, 0), "x": (boxes[0], "x"), "concept": (boxes[0], "concept")}
    owner, key = inside.get(where, (content, where))
    owner[key] = junk
    layout, refused = _read(junk if where == "all" else content)
    if refused:
        assert refused.problem.endswith(".")
        assert refused.remedy
        assert len(refused.problem) < 400
    else:
        assert layout is None or layout.boxes


def _read(content):
    try:
        return to_layout(read_layout_value(content)), None
    except UsageError as refused:
        return None, refused


def test_the_component_checks_both_ways_and_describes_itself():
    component = LayoutCanvas(from_layout(LEFT_RIGHT, ["milo", "rex"], width=768, height=512))
    content = _content()
    assert component.preprocess(content) == LayoutValue(**content)
    assert component.postprocess(None)["boxes"] == []
    assert component.preprocess(component.example_payload()).boxes
    with pytest.raises(gr.Error, match="Box 1, milo"):
        component.preprocess(content | {"boxes": [content["boxes"][0] | {"x": 9e99}]})
    with pytest.raises(UsageError):
        component.postprocess(content | {"width": 0})
    assert component.api_info()["type"] == "object"
    assert "additionalProperties" not in str(component.api_info())  # gradio_client fails on it


def test_no_stub_is_written_beside_the_source():
    assert not Path(canvas.__file__).with_suffix(".pyi").exists()


def test_marks_have_a_letter_and_a_legible_colour_each():
    made = marks([f"c{n}" for n in range(MOST_CONCEPTS)])
    assert [mark.letter for mark in made[:3]] == ["A", "B", "C"]
    assert len({mark.letter for mark in made}) == MOST_CONCEPTS
    assert len({mark.colour for mark in made[:8]}) == 8
    assert all(contrast(mark.ink, mark.colour) >= LEGIBLE for mark in made)


@pytest.mark.parametrize("sight", SIGHT)
def test_the_eight_colours_stay_apart_for_every_sight(sight):
    seen = [_lab(colour, SIGHT[sight]) for colour in COLOURS]
    assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 15


def _lab(colour, matrix):
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    light = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    seen = [min(max(sum(m * p for m, p in zip(row, light, strict=True)), 0), 1) for row in matrix]
    xyz = [sum(m * p for m, p in zip(row, seen, strict=True)) for row in TO_XYZ]
    x, y, z = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (xyz[0] / 0.9505, xyz[1], xyz[2] / 1.089)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_writing_is_legible_on_every_ground(palette):
    colours = asdict(palette)
    for ground in ("paper", "card", "wash", "accent_wash"):
        for writing in ("ink", "soft", "accent", "accent_strong"):
            assert contrast(colours[writing], colours[ground]) >= LEGIBLE, (writing, ground)
    for state in ("good", "warn", "bad"):
        assert all(contrast(colours[state], colours[ground]) >= LEGIBLE for ground in ("paper", "card", "wash"))
    assert contrast(palette.bad, palette.bad_wash) >= LEGIBLE
    assert contrast(palette.ink, palette.bad_wash) >= LEGIBLE
    assert contrast(palette.accent_ink, palette.accent) >= LEGIBLE
    assert contrast(palette.accent_ink, palette.accent_strong) >= LEGIBLE
    assert all(contrast(palette.edge, colours[ground]) >= 3 for ground in ("paper", "card", "wash"))


def test_the_look_needs_nothing_from_elsewhere():
    theme = StudioTheme()
    sheet = theme._get_theme_css()
    own = "".join(file.read_text(encoding="utf-8") for file in WEB.glob("*.css"))
    assert theme._stylesheets == []
    assert "@font-face" not in sheet + own
    assert "@import" not in sheet + own
    assert "url(" not in own
    assert all(f"--studio-{name.replace('_', '-')}: {value};" in sheet for name, value in asdict(DARK).items())


def test_the_sheets_name_only_colours_of_the_palette():
    names = {f"--studio-{name.replace('_', '-')}" for name in asdict(LIGHT)}
    for file in WEB.glob("*.css"):
        assert set(re.findall(r"--studio-[a-z-]+", file.read_text(encoding="utf-8"))) <= names, file.name
