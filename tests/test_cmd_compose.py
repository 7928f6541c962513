import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures_models import build_lora
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_encoders import tiny_clip  # noqa: F401
from test_generate import difference

from studio import models
from studio.concepts import Concept, write_concept
from studio.encoders import load_clip
from studio.pipelines.methods import METHODS
from studio.ui.composing import make_plan

BOTH = "a <milo> and a <rex> on the grass"
QUICK = ("--steps", 6, "--seed", 9, "--device", "cpu", "--json")


@pytest.fixture
def library(home, tiny_sdxl, tiny_loras):
    """milo and rex in the library; `add` puts others there."""

    def add(name: str, lora: int = 0, base: Path | str = tiny_sdxl, trigger: str = "sks") -> Path:
        folder = home.library / name
        folder.mkdir(parents=True)
        shutil.copy(tiny_loras[lora], folder / "adapter.safetensors")
        write_concept(Concept(name, trigger, "cat", str(base), "sdxl", "lora", folder))
        return folder

    add("milo")
    add("rex", 1, trigger="ohwx")
    return add


@pytest.fixture
def no_loading(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(models, "load_base", refuse)


@pytest.fixture
def drawn(run_studio, library, tmp_path):
    """A picture, drawn with most settings not as usual."""
    ended = run_studio(
        "compose", BOTH, "--concept", "rex=0.8", "--method", "regional", "--box", "milo=0,0.25,0.5,1",
        "--box", "rex=0.5,0,1,1", "--negative", "night", "--guidance", 3, "--width", 48, "--scheduler", "ddim",
        "--out", tmp_path / "first", *QUICK,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return Path(json.loads(ended.out)["pictures"][0]["path"])


def test_the_best_candidate_is_kept_and_says_its_seed(run_studio, library, tiny_clip, tmp_path):  # noqa: F811
    red = tmp_path / "red"
    red.mkdir()
    Image.new("RGB", (40, 40), "red").save(red / "1.png")
    asked = ("compose", BOTH, "--method", "merge", *QUICK)
    plain = json.loads(run_studio(*asked, "--count", 6, "--out", tmp_path / "all").out)["pictures"]
    given = ("--count", 2, "--best-of", 3, "--clip", tiny_clip, "--references", f"milo={red}")
    ended = run_studio(*asked, *given, "--out", tmp_path / "best")
    assert ended.code == 0, ended.err
    best = json.loads(ended.out)["pictures"]
    clip = load_clip(str(tiny_clip))
    red_one = clip.images([Image.new("RGB", (40, 40), "red")]).T
    pictures = [Image.open(one["path"]) for one in plain]
    halves = [(0, 1), (0, 0.5), (0.5, 1)]  # where it is looked for, nobody having said where it is
    parts = [[one.crop((box[0] * one.width, 0, box[1] * one.width, one.height)) for one in pictures] for box in halves]
    like = torch.stack([clip.images(part) @ red_one for part in parts]).amax(0)
    wanted = [9 + int(like[:3].argmax()), 12 + int(like[3:].argmax())]
    assert [one["seed"] for one in best] == wanted
    assert [told(Path(one["path"]))["seed"] for one in best] == wanted
    assert best[0]["scores"]["CLIP-I"] == pytest.approx(float(like[:3].max()), abs=1e-3)
    assert f"Picture 1 is seed {wanted[0]} of 3 candidates" in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((BOTH, "--best-of", 2), "Give a CLIP with --clip"), (("a cat", "--style", "milo", "--best-of", 2), "names none")],
)
def test_a_choice_that_nobody_could_make_is_refused(run_studio, library, no_loading, arguments, words):
    ended = run_studio("compose", *arguments)
    assert ended.code == 2
    assert words in ended.err


def told(path: Path) -> dict:
    return json.loads(Image.open(path).info["studio"])


def retell(path: Path, target: Path, change) -> Path:
    """A copy that tells something else."""
    info = PngInfo()
    text = change(told(path))
    info.add_itxt("studio", text if isinstance(text, str) else json.dumps(text))
    Image.open(path).save(target, pnginfo=info)
    return target


def test_a_picture_tells_and_draws_itself_again(run_studio, drawn, tmp_path):
    told_first = told(drawn)
    assert told_first["layout"] == {"milo": [0, 0.25, 0.5, 1], "rex": [0.5, 0, 1, 1]}
    assert [told_first[key] for key in ("method", "seed", "width", "scheduler")] == ["regional", 9, 48, "ddim"]
    ended = run_studio("compose", "--from", drawn, "--out", tmp_path / "again", "--device", "cpu")
    assert ended.code == 0, ended.err
    again = Path(ended.out.strip())
    assert told(again) == told_first
    assert Image.open(again).tobytes() == Image.open(drawn).tobytes()


def test_what_is_given_outweighs_the_picture(run_studio, drawn, tmp_path):
    ended = run_studio(
        "compose", "--from", drawn, "--method", "composite", "--seed", 10, "--concept", "milo=0.5", "--steps", 2,
        "--count", 2, "--box", "milo=0,0,1,0.5", "--out", tmp_path / "again", "--device", "cpu", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert [one["seed"] for one in report["pictures"]] == [10, 11]
    found = told(Path(report["pictures"][0]["path"]))
    changed = {"method": "composite", "seed": 10, "steps": 2, "layout": {"milo": [0, 0, 1, 0.5]}}
    kept = {key: told(drawn)[key] for key in ("prompt", "negative_prompt", "guidance", "scheduler", "width", "base")}
    assert (changed | kept).items() <= found.items()
    assert {one["name"]: one["strength"] for one in found["concepts"]} == {"milo": 0.5, "rex": 0.8}


def test_a_new_prompt_leaves_out_what_it_does_not_name(run_studio, drawn, tmp_path):
    ended = run_studio("compose", "a <rex>", "--from", drawn, "--out", tmp_path / "again", "--device", "cpu", "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert ([one["name"] for one in report["concepts"]], list(report["layout"])) == (["rex"], ["rex"])


def test_a_changed_concept_is_refused_unless_it_is_asked_for(run_studio, drawn, home, tiny_loras, tmp_path):
    shutil.copy(tiny_loras[1], home.library / "milo" / "adapter.safetensors")
    ended = run_studio("compose", "--from", drawn)
    assert ended.code == 2
    assert "'milo' is not the one of the picture" in ended.err
    assert "--concept milo=1" in ended.err
    ended = run_studio("compose", "--from", drawn, "--concept", "milo", "--out", tmp_path / "new", "--device", "cpu")
    assert ended.code == 0, ended.err


def test_another_version_of_the_studio_is_a_notice(run_studio, drawn, tmp_path):
    older = retell(drawn, tmp_path / "old.png", lambda told: told | {"studio": "0.0.1\x1b[2J"})
    ended = run_studio("compose", "--from", older, "--steps", 1, "--out", tmp_path / "again", "--device", "cpu")
    assert ended.code == 0, ended.err
    assert "drawn by studio 0.0.1; this is" in ended.err


def without(*keys: str):
    return lambda told: {key: value for key, value in told.items() if key not in keys}


def test_what_a_stranger_wrote_is_shown_without_control_characters(run_studio, drawn, no_loading, tmp_path):
    for key in ("prompt", "base", "method", "scheduler"):
        odd = retell(drawn, tmp_path / f"{key}.png", lambda told, key=key: told | {key: "<a:\x1b[2J\x07>"})
        ended = run_studio("compose", "--from", odd)
        assert ended.code == 2
        assert not {"\x1b", "\x07"} & set(ended.out + ended.err)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("method"), "has no 'method': a studio of another version wrote it"),
        (lambda told: told | {"steps": "many"}, "says 'many' for 'steps'"),
        (lambda told: told | {"steps": True}, "says True for 'steps'"),
        (lambda told: told | {"steps": -1}, "steps is -1"),
        (lambda told: told | {"guidance": float("nan")}, "guidance is nan"),
        (lambda told: told | {"method": "magic"}, "no method 'magic'"),
        (lambda told: told | {"layout": {"milo": [0, 0, 2, 1]}}, "beyond the canvas"),
        (lambda told: told | {"concepts": [{"name": "../x"}]}, "of a concept"),
        (lambda told: told | {"concepts": [told["concepts"][0] | {"name": "gone"}], "prompt": "<gone>"}, "'gone'"),
        (lambda told: [1], "is no JSON object"),
        (lambda told: "[" * 100_000, "is no JSON object"),
    ],
)
def test_a_picture_that_tells_nonsense_is_refused(run_studio, drawn, no_loading, tmp_path, change, said):
    ended = run_studio("compose", "--from", retell(drawn, tmp_path / "odd.png", change))
    assert ended.code == 2, ended.err
    assert said in ended.err


def test_files_that_tell_nothing_are_refused(run_studio, library, no_loading, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, said in (("plain", "does not tell"), ("text", "it is no picture"), ("gone", "No such file")):
        ended = run_studio("compose", "--from", tmp_path / f"{name}.png")
        assert ended.code == 2
        assert said in ended.err


def test_pictures_of_generate_are_merges(run_studio, library, tmp_path):
    first = run_studio("generate", "a <milo>", "--out", tmp_path / "a", *QUICK)
    ended = run_studio("compose", "--from", json.loads(first.out)["pictures"][0]["path"], "--device", "cpu", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["method"] == "merge"
    one, other = (Image.open(json.loads(said)["pictures"][0]["path"]) for said in (first.out, ended.out))
    assert difference(one, other) <= 1


def test_all_methods_are_compared_on_one_sheet(run_studio, library, monkeypatch, tmp_path):
    few = {name: METHODS[name] for name in ("merge", "switch", "composite", "regional")}
    monkeypatch.setattr("studio.ui.composing.METHODS", few)
    ended = run_studio("compose", BOTH, "--compare", "--count", 2, "--out", tmp_path / "out", *QUICK[2:], "--steps", 5)
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert "switch is left out. Switching every 5 steps, 5 steps leave no turn" in ended.err
    assert "regional is left out. The method regional needs a box for <milo>" in ended.err
    assert [(one["method"], one["seed"]) for one in report["pictures"]] == [
        (name, seed) for name in ("merge", "composite") for seed in (9, 10)
    ]
    assert all(told(Path(one["path"]))["method"] == one["method"] for one in report["pictures"])
    sheet = Image.open(report["sheet"])
    assert sheet.width > 2 * 32
    assert sheet.height > 2 * 32
    ended = run_studio("compose", "--from", report["sheet"])
    assert "does not tell" in ended.err


def test_paths_are_printed_the_sheet_last(run_studio, library, monkeypatch, tmp_path):
    monkeypatch.setattr("studio.ui.composing.METHODS", {"merge": METHODS["merge"]})
    ended = run_studio("compose", BOTH, "--compare", "--steps", 1, "--out", tmp_path / "out", "--device", "cpu")
    assert ended.code == 0, ended.err
    lines = [Path(line) for line in ended.out.split()]
    assert [line.parent.name for line in lines] == ["merge", "out"]
    assert all(line.is_file() for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "There is no prompt"),
        (["a cat"], "no concept to compose"),
        (["a <milo>", "--concept", "rex"], "does not name <rex>"),
        (["a <bela>"], "no concept 'bela'"),
        (["a <lora:milo:0.8>"], "--concept NAME=STRENGTH"),
        ([BOTH, "--negative", "<bella>"], "names <bella>"),
        ([BOTH, "--method", "regionel"], "Did you mean 'regional'?"),
        ([BOTH, "--method", "regional", "--box", "milo=0,0,1,1"], "needs a box for <rex>"),
        ([BOTH, "--method", "merge", "--compare"], "Leave out --method"),
        ([BOTH, "--method", "switch", "--steps", "1"], "leave no turn for <rex>"),
        ([BOTH, "--box", "bella=0,0,1,1"], "a box for 'bella'"),
        ([BOTH, "--box", "milo"], "is no box"),
        ([BOTH, "--box", "milo=0,0,1"], "is no box"),
        ([BOTH, "--box", "milo=0,0,1.5,1"], "beyond the canvas"),
        ([BOTH, "--box", "milo=0.5,0,0.5,1"], "empty or upside down"),
        ([BOTH, "--box", "milo=0.9,0,0.5,1"], "empty or upside down"),
        ([BOTH, "--box", "milo=nan,0,1,1"], "something else than numbers"),
        ([BOTH, "--box", "milo=0,0,0.01,0.01"], "smaller than a cell of the 8 x 8 grid"),
        ([BOTH, "--box", "milo=0,0,1,1", "--box", "milo=0,0,1,0.5"], "--box milo is given twice"),
        ([BOTH, "--box", "milo=0,0,1,1", "--box", "rex=0,0,1,1"], "wholly covered"),
        ([BOTH, "--box", "milo=0,0,1,1", "--layout", "x.json"], "in --box and in --layout"),
        ([BOTH, "--layout", "nowhere.json"], "Cannot read the layout"),
        ([BOTH, "--concept", "milo=1", "--concept", "milo=2"], "given twice"),
        ([BOTH, "--concept", "milo=nan"], "is no strength"),
        ([BOTH, "--width", "40"], "width 40 is not a multiple of 16"),
        ([BOTH, "--steps", "0"], "steps is 0"),
        ([BOTH, "--guidance", "nan"], "guidance is nan"),
    ],
)
def test_wrong_usage_is_refused_before_the_base_is_loaded(run_studio, library, no_loading, arguments, said):
    ended = run_studio("compose", *arguments)
    assert ended.code == 2
    assert said in ended.err


def test_nine_concepts_are_refused(run_studio, library, no_loading):
    names = [f"c{n}" for n in range(9)]
    for name in names:
        library(name)
    ended = run_studio("compose", " ".join(f"<{name}>" for name in names))
    assert ended.code == 2
    assert "9 concepts are too many" in ended.err


def test_concepts_of_different_bases_and_families_are_refused(run_studio, library, no_loading, tiny_sd15):
    library("cleo", base=tiny_sd15)
    ended = run_studio("compose", "<milo> and <cleo>")
    assert ended.code == 2
    assert "different bases" in ended.err
    ended = run_studio("compose", "<milo> and <rex>", "--base", tiny_sd15)
    assert ended.code == 2
    assert "Stable Diffusion XL" in ended.err


def test_three_of_the_embedded_base_get_a_wide_canvas_unless_a_size_is_given(home, library):
    for name in ("luna", "nori", "zara"):
        library(name, base="picturebook")

    def planned(prompt: str, **size: int):
        options = {"prompt": prompt, "width": None, "height": None, **size}
        return make_plan(home, options, [], [], None, [METHODS["auto"]], None, None, None)

    three = "<luna>, <nori> and <zara>"
    assert planned(three).settings.width == 144
    assert any("144 px wide" in notice for notice in planned(three).notices)
    assert planned(three, height=96).settings.width is None
    assert planned(three, width=96).settings.width == 96
    assert planned("<luna> and <nori>").settings.width is None


def test_a_layout_file_places_and_overlaps_are_said(run_studio, library, tmp_path):
    file = tmp_path / "l.json"
    file.write_text(json.dumps({"rex": [0, 0, 0.6, 1], "milo": [0.5, 0, 1, 1]}))
    long = BOTH + " on the grass" * 9
    ended = run_studio("compose", long, "--layout", file, "--method", "regional", "--guidance", 1, *QUICK)
    assert ended.code == 0, ended.err
    assert "<rex> and <milo> overlap; there <milo>" in ended.err
    assert "the rest has no effect" in ended.err
    assert list(json.loads(ended.out)["layout"]) == ["rex", "milo"]
    ended = run_studio("compose", BOTH, "--layout", file, "--method", "merge", "--steps", 1, "--device", "cpu")
    assert "merge does not look at boxes" in ended.err


@pytest.fixture
def styled(run_studio, library, tmp_path, tiny_sdxl):
    build_lora(tiny_sdxl, library("neon", trigger="zwx") / "adapter.safetensors", seed=5)
    ended = run_studio("compose", BOTH, "--style", "neon=0.4", "--method", "composite", "--out", tmp_path / "s", *QUICK)
    assert ended.code == 0, ended.err
    assert "the prompt is 'a sks cat and a ohwx cat on the grass, zwx cat'" in ended.err
    return Path(json.loads(ended.out)["pictures"][0]["path"])


def test_a_style_rides_and_is_told_and_drawn_again(run_studio, styled, tmp_path):
    ((name, strength),) = [(one["name"], one["strength"]) for one in told(styled)["styles"]]
    assert (name, strength, told(styled)["prompt"]) == ("neon", 0.4, BOTH)
    ended = run_studio("compose", "--from", styled, "--out", tmp_path / "again", "--device", "cpu")
    assert ended.code == 0, ended.err
    again = Path(ended.out.strip())
    assert told(again) == told(styled)
    assert Image.open(again).tobytes() == Image.open(styled).tobytes()


def test_the_style_of_a_picture_can_be_given_anew(run_studio, styled, tmp_path):
    options = ("--from", styled, "--device", "cpu", "--json")
    off = run_studio("compose", "a <milo>", *options, "--style", "neon=0", "--out", tmp_path / "off")
    none = run_studio("compose", "a <milo>", "--method", "composite", "--out", tmp_path / "none", *QUICK)
    pictures = [Image.open(json.loads(ended.out)["pictures"][0]["path"]) for ended in (off, none)]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    kept = run_studio("compose", "a <milo>", *options, "--out", tmp_path / "kept")
    assert Image.open(json.loads(kept.out)["pictures"][0]["path"]).tobytes() != pictures[1].tobytes()


def test_a_style_that_has_changed_is_refused(run_studio, styled, home, tiny_loras):
    shutil.copy(tiny_loras[0], home.library / "neon" / "adapter.safetensors")
    ended = run_studio("compose", "--from", styled)
    assert ended.code == 2
    assert "--style neon=0.4" in ended.err


def test_a_style_alone_is_drawn_once_even_to_compare(run_studio, styled, tmp_path):
    ended = run_studio("compose", "a red cat", "--style", "neon", "--compare", "--out", tmp_path / "one", *QUICK)
    assert ended.code == 0, ended.err
    assert [one["method"] for one in json.loads(ended.out)["pictures"]] == ["merge"]
    assert "names no concept" in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--style", "neon", "--style", "neon=2"], "--style neon is given twice"),
        (["--style", "neon=much"], "--style neon=much: 'much' is no strength"),
        (["--style", "neon", "--concept", "neon"], "<neon> is given twice"),
        (["--style", "nein"], "Did you mean 'neon'"),
    ],
)
def test_wrong_styles_are_refused_before_the_base_is_loaded(run_studio, library, no_loading, arguments, said):
    library("neon", 1, trigger="zwx")
    ended = run_studio("compose", BOTH, *arguments)
    assert ended.code == 2
    assert said in ended.err
