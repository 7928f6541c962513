import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cmd_compose import told

from studio import models
from studio.concepts import Concept, write_concept
from studio.events import silent
from studio.library import Library
from studio.models import find_base, load_base
from studio.pipelines.settings import GenerateSettings
from studio.pipelines.stylize import stylize

PROMPT = "a <milo> in <neon>"
QUICK = ("--steps", 3, "--guidance", 4, "--seed", 7, "--device", "cpu", "--json")
BOTH = ("--content", "milo", "--style", "neon")


@pytest.fixture
def library(home, tiny_sdxl, tiny_loras):
    """milo and neon in the library, of the whole UNet; `add` puts others there."""

    def add(name: str, lora: int = 0, base: Path | str = tiny_sdxl, words: tuple[str, str] = ("sks", "cat")) -> Path:
        folder = home.library / name
        folder.mkdir(parents=True)
        shutil.copy(tiny_loras[lora], folder / "adapter.safetensors")
        write_concept(Concept(name, *words, str(base), "sdxl", "lora", folder))
        return folder

    add("milo")
    add("neon", 1, words=("zwx", "style"))
    return add


@pytest.fixture
def no_loading(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(models, "load_base", refuse)


def picture(ended) -> Path:
    assert ended.code == 0, ended.err
    return Path(json.loads(ended.out)["pictures"][0]["path"])


def same(one: Path, other: Path) -> bool:
    return Image.open(one).tobytes() == Image.open(other).tobytes()


def test_it_draws_what_the_api_draws(run_studio, library, home, tiny_sdxl):
    options = ("--content-strength", 0.5, "--style-strength", 1.5)
    ended = run_studio("stylize", PROMPT, *BOTH, *options, *QUICK)
    found = Image.open(picture(ended))
    milo, neon = (Library(home).find(name) for name in ("milo", "neon"))
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    settings = GenerateSettings(PROMPT, steps=3, guidance=4.0, seed=7)
    (truth,) = stylize(base, settings, silent, (milo, 0.5), (neon, 1.5))
    assert found.tobytes() == truth.tobytes()
    assert ended.err.count("only approximate") == 2


def test_compatible_strengths_act_squared(run_studio, library):
    squared = ("--content-strength", 0.25, "--style-strength", 2.25)
    alphas = ("--content-strength", -0.5, "--style-strength", 1.5, "--blora-compat")
    one, other = (picture(run_studio("stylize", PROMPT, *BOTH, *options, *QUICK)) for options in (squared, alphas))
    assert same(one, other)
    assert told(one) == told(other)


def test_a_picture_tells_and_draws_itself_again(run_studio, library, tmp_path):
    first = picture(run_studio("stylize", PROMPT, *BOTH, "--style-strength", 0.5, *QUICK))
    assert {one["name"]: one["strength"] for one in told(first)["concepts"] + told(first)["styles"]} == {
        "milo": 1.0, "neon": 0.5,
    }  # fmt: skip
    again = picture(run_studio("stylize", "--from", first, "--out", tmp_path / "a", "--device", "cpu", "--json"))
    assert same(first, again)
    assert told(first) == told(again)
    options = ("--style-strength", 1, "--out", tmp_path / "b", "--device", "cpu", "--json")
    stronger = picture(run_studio("stylize", "--from", first, *options))
    assert told(stronger)["styles"][0]["strength"] == 1.0
    assert not same(first, stronger)


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        (("--style", "glass"), "a <milo> in <glass>"),
        (("--content", "glass"), "a <glass> in <neon>"),
        (("--content", "neon", "--style", "milo"), "a <neon> in <milo>"),
    ],
)
def test_another_content_or_style_takes_the_old_ones_place_in_the_prompt(run_studio, library, options, prompt):
    first = picture(run_studio("stylize", PROMPT, *BOTH, *QUICK))
    library("glass", words=("wxz", "style"))
    other = picture(run_studio("stylize", "--from", first, *options, "--device", "cpu", "--json"))
    assert told(other)["prompt"] == prompt
    given = picture(run_studio("stylize", "a <milo>", "--from", first, "--style", "glass", "--device", "cpu", "--json"))
    assert told(given)["prompt"] == "a <milo>"


def test_pictures_of_one_command_are_refused_by_the_other(run_studio, library):
    styled = picture(run_studio("stylize", PROMPT, *BOTH, *QUICK))
    composed = picture(run_studio("compose", "a <milo>", "--style", "neon", *QUICK))
    ended = run_studio("compose", "--from", styled, "--method", "merge")
    assert (ended.code, "studio stylize --from" in ended.err) == (2, True)
    ended = run_studio("stylize", "--from", composed)
    assert (ended.code, "studio compose --from" in ended.err) == (2, True)


def test_a_changed_concept_is_refused_unless_it_is_asked_for(run_studio, library, home, tiny_loras):
    first = picture(run_studio("stylize", PROMPT, *BOTH, *QUICK))
    shutil.copy(tiny_loras[0], home.library / "neon" / "adapter.safetensors")
    ended = run_studio("stylize", "--from", first)
    assert ended.code == 2
    assert ended.err.endswith("say so: --style neon\n")
    assert run_studio("stylize", "--from", first, "--style", "neon", "--device", "cpu").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([PROMPT], "neither content nor style"),
        ([], "There is no prompt"),
        (["a cat", "--content", "milo"], "does not name <milo>"),
        (["a <milo>", "--content", "milo", "--style-strength", "1"], "--style-strength is given without --style"),
        ([PROMPT, *BOTH, "--style-strength", "nan"], "--style-strength nan is no strength"),
        (["a <milo> and a <rex>", "--content", "milo"], "In use: <milo>. Add rex to them, or take <rex> out of the"),
        (["a cat", "--style", "noen"], "Did you mean 'neon'"),
        (["a cat", "--style", "content-only"], "no style half"),
        ([PROMPT, *BOTH, "--width", "33"], "width 33 is not a multiple"),
    ],
)
def test_wrong_usage_is_refused_before_the_base_is_loaded(run_studio, library, no_loading, arguments, said):
    file = library("content-only") / "adapter.safetensors"
    kept = {key: one for key, one in load_file(file).items() if key.startswith("unet.up_blocks.0.attentions.0.")}
    save_file(kept, file)
    ended = run_studio("stylize", *arguments)
    assert ended.code == 2
    assert said in ended.err


def test_other_families_are_refused(run_studio, library, no_loading, tiny_sd15):
    ended = run_studio("stylize", PROMPT, *BOTH, "--base", tiny_sd15)
    assert ended.code == 2
    assert "no block is known" in ended.err
