import shutil

import gradio as gr
import pytest
from PIL import Image

from studio.bases import find_base
from studio.concepts import Concept, write_concept
from studio.errors import UsageError
from studio.library import Library
from studio.pipelines.outputs import describe, save_pictures
from studio.pipelines.settings import GenerateSettings
from studio.regions import Box, Layout
from studio.ui import compose_fields
from studio.ui.canvas import LayoutValue, from_layout, to_layout
from studio.ui.composed import leak_matrix

BOXES = {"milo": Box(0.1, 0.2, 0.5, 1.0), "rex": Box(0.5, 0.0, 1.0, 0.9)}


@pytest.fixture
def library(home, tiny_sdxl, tiny_loras):
    for name, file, trigger in (("milo", tiny_loras[0], "sks"), ("rex", tiny_loras[1], "ohwx")):
        folder = home.library / name
        folder.mkdir(parents=True)
        shutil.copy(file, folder / "adapter.safetensors")
        write_concept(Concept(name, trigger, "cat", str(tiny_sdxl), "sdxl", "lora", folder))
    return Library(home)


@pytest.fixture
def canvas():
    return from_layout(Layout(BOXES), ["milo", "rex"], width=64, height=32)


def asked(canvas, **changes):
    given = {
        "library": None, "prompt": "a <milo> and a <rex>", "names": ["milo", "rex"], "canvas": canvas,
        "shape": "usual", "method": "auto", "count": 1,
        "seed": None, "beside": True, "styles": [], "strengths": [], "steps": None, "guidance": None, "negative": None,
        "best_of": 1,
    }  # fmt: skip
    return compose_fields.asked_for(**(given | changes))


def test_the_table_and_the_canvas_say_the_same(canvas):
    rows = compose_fields.rows_of(canvas)
    assert rows == [["milo", 10.0, 20.0, 50.0, 100.0], ["rex", 50.0, 0.0, 100.0, 90.0]]
    again = to_layout(compose_fields.from_rows(rows, canvas))
    assert again is not None
    assert list(again.boxes) == list(BOXES)
    for name, box in BOXES.items():
        assert again.boxes[name].sides == pytest.approx(box.sides)


@pytest.mark.parametrize("row", [["milo", 0, 0, "", 100], ["milo", 90, 0, 10, 100], ["milo", 0, 0, 200, 100],
                                 ["nobody", 0, 0, 50, 50], ["milo", float("nan"), 0, 50, 50]])  # fmt: skip
def test_a_row_that_is_no_box_is_refused(canvas, row):
    with pytest.raises(UsageError):
        compose_fields.from_rows([row], canvas)


def test_a_request_has_what_the_page_shows(canvas):
    ask = asked(canvas, seed=" 7 ", steps="9", negative="night", strengths=[["rex", 0.5], ["", None]])
    assert ask.boxes == {name: box.sides for name, box in BOXES.items()}
    assert (ask.concepts, ask.seed, ask.steps, ask.negative_prompt) == ({"milo": 1.0, "rex": 0.5}, 7, 9, "night")
    assert (ask.width, ask.height, ask.beside_merge) == (64, 32, True)


def test_names_that_only_the_prompt_calls_get_the_usual_size_and_their_strengths(library):
    untouched = LayoutValue(width=512, height=512)
    ask = asked(untouched, names=[], strengths=[["milo", 0.5], ["neon", 0.7]], styles=["neon"])
    assert (ask.width, ask.height, ask.concepts, ask.styles) == (None, None, {"milo": 0.5}, {"neon": 0.7})
    wide = asked(untouched, library=library, names=[], shape="wide")
    assert (wide.width, wide.height) == compose_fields.canvas_size(library, ["milo", "rex"], "wide")


def test_one_concept_has_nothing_to_be_compared_with(canvas):
    assert not asked(canvas, prompt="a <milo>", names=["milo"]).beside_merge


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"seed": "x"}, "The seed"), ({"seed": "-1"}, "The seed"), ({"prompt": "a <milo>"}, "does not name <rex>"),
     ({"count": 1000}, "count"), ({"steps": "0"}, "steps"),
     ({"guidance": "nan"}, "Guidance"), ({"prompt": None}, "does not name"),
     ({"strengths": [["milo", 99]]}, "concepts")],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(canvas, changes, says):
    with pytest.raises(UsageError, match=says):
        asked(canvas, **changes)


def test_boxes_stay_with_their_concepts_when_others_are_chosen(library, canvas):
    fresh = compose_fields.canvas_for(library, ["rex"], "wide", canvas)
    assert [box.concept for box in fresh.boxes] == ["rex"]
    assert fresh.width > fresh.height


def test_three_of_the_embedded_base_get_room_by_themselves(library, home, tiny_loras):
    for name in ("luna", "nori", "zara"):
        folder = home.library / name
        folder.mkdir()
        shutil.copy(tiny_loras[0], folder / "adapter.safetensors")
        write_concept(Concept(name, "sks", "cat", "picturebook", "sdxl", "lora", folder))
    assert compose_fields.canvas_size(library, ["luna", "nori", "zara"], "usual") == (144, 96)
    assert compose_fields.canvas_size(library, ["luna", "nori"], "usual") == (96, 96)
    assert compose_fields.canvas_size(library, ["luna", "nori"], "wide") == (144, 96)


def test_strengths_stay_when_the_shape_or_other_concepts_change(canvas):
    rows = [["milo", 0.8], ["rex", 0.5], ["neon", 0.7], ["", None]]
    assert compose_fields.strengths_for(rows, ["rex", "zara"], canvas) == [["rex", 0.5], ["neon", 0.7], ["zara", 1.0]]


def test_names_are_written_as_text(library):
    shown = compose_fields.chips(['<img src=x onerror="alert(1)">'])
    assert "<img" not in shown
    assert "&lt;img" in shown


def picture(library, folder, settings, concepts, method="merge", layout=None, styles=(), **more):
    """A PNG that tells of all that."""
    with_strengths = lambda given: [(library.find(name), strength) for name, strength in given]  # noqa: E731
    everyone, riding = with_strengths(concepts), with_strengths(styles)
    base = find_base((everyone + riding)[0][0].base)
    told = describe(settings, base, everyone, method, layout, riding) | more
    return str(save_pictures([Image.new("RGB", (64, 32))], folder, told)[0])


def test_a_picture_gives_its_styles_back_and_says_what_the_page_cannot_ask_for(library, tmp_path):
    settings = GenerateSettings("a <milo>", steps=9, scheduler="ddim", vae_tiling=True)
    file = picture(library, tmp_path, settings, [("milo", 1.0)], styles=[("rex", 0.7)], studio="0.0.1", base="sd<15>")
    given = dict(zip(compose_fields.FIELDS, compose_fields.restored(library, file), strict=True))
    assert (given["styles"], given["strengths"]) == (["rex"], [["milo", 1.0], ["rex", 0.7]])
    assert 'data-name="milo"' in given["chips"]
    assert 'data-name="rex"' not in given["chips"]
    for words in ("drawn by studio 0.0.1", "the scheduler ddim", "tiles", "the base sd&lt;15&gt;", "compose --from"):
        assert words in given["said"]
    plain = picture(library, tmp_path, GenerateSettings("a <milo>", steps=9), [("milo", 1.0)])
    assert compose_fields.restored(library, plain)[-1] == ""
    alone = picture(library, tmp_path, GenerateSettings("grass"), [], styles=[("rex", 1.0)])
    assert "a size of 64 x 32" in compose_fields.restored(library, alone)[-1]
    shutil.copy(library.find("milo").adapter_file, library.find("rex").adapter_file)
    with pytest.raises(UsageError, match="'rex' is not the one of the picture"):
        compose_fields.restored(library, file)


def test_a_picture_gives_all_of_it_back(library, canvas, tmp_path):
    import json

    concepts = [(library.find(name), strength) for name, strength in (("milo", 0.8), ("rex", 1.0))]
    settings = GenerateSettings("a <milo> and a <rex>", "night", 64, 32, 9, 3.0, "ddim", 7)
    told = describe(settings, find_base(concepts[0][0].base), concepts, "regional", Layout(BOXES))
    (path,) = save_pictures([Image.new("RGB", (64, 32))], tmp_path, told)
    names, value, rows, _, prompt, _, method, _, seed, _, strengths, steps, guidance, negative, _, shape, _ = (
        compose_fields.restored(library, str(path))
    )
    assert (names, prompt, method, seed) == (["milo", "rex"], settings.prompt, "regional", "7")
    layout = to_layout(value)
    assert layout is not None
    assert {name: box.sides for name, box in layout.boxes.items()} == {n: b.sides for n, b in BOXES.items()}
    assert (strengths, steps, guidance, negative, shape) == ([["milo", 0.8], ["rex", 1.0]], "9", "3.0", "night", "wide")
    assert len(rows) == 2
    assert json.dumps(value.model_dump())


def test_a_picture_of_another_adapter_of_that_name_is_refused(library, tmp_path):
    told = describe(GenerateSettings("a <milo>"), find_base(library.find("milo").base), [(library.find("milo"), 1.0)])
    (path,) = save_pictures([Image.new("RGB", (8, 8))], tmp_path, told)
    shutil.copy(library.find("rex").adapter_file, library.find("milo").adapter_file)
    with pytest.raises(UsageError, match="not the one of the picture"):
        compose_fields.restored(library, str(path))


def test_no_file_changes_nothing(library):
    assert compose_fields.restored(library, None) == [gr.skip()] * len(compose_fields.FIELDS)


def test_a_place_that_is_more_like_another_than_itself_is_marked():
    shown = leak_matrix(["milo", "rex"], [[0.9, 0.2], [0.7, 0.4]])
    assert shown.count('class="own"') == 1
    assert shown.count('class="leaks"') == 1
    assert leak_matrix(["a", "b"], [[0.9, 0.1], [0.1, 0.9]]).count('class="leaks"') == 0
