"""Further files of a concept, and the sheet of its previews."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from training_helpers import tiny_recipe

from studio.adapter_targets import Target
from studio.adapter_writing import Written, write_adapter
from studio.adapters import Adapter, load_adapter, load_concept
from studio.errors import StudioError, UsageError
from studio.factors import Dora, Factor
from studio.home import Home
from studio.library import Library
from studio.tensorfile import read_header
from studio.trainers import exports
from studio.trainers.dreambooth import train_concept
from studio.trainers.exports import check_exports
from studio.trainers.recipe import build_recipe, read_toml
from studio.trainers.report import write_card
from studio.trainers.sample_grid import draw_grid
from studio.trainers.shipped_concepts import add_shipped
from studio.trainers.workplace import workplace_of


def parts(factor: Factor) -> list[torch.Tensor]:
    """The dense change; of DoRA what it is on, and the magnitudes."""
    if isinstance(factor, Dora):
        return [*parts(factor.inner), factor.magnitude.flatten()]
    return [factor.delta().flatten(1)]


@pytest.mark.parametrize(
    ("kind", "formats"),
    [
        ({}, ("peft", "diffusers", "kohya", "lycoris")),
        ({"rank": 3, "alpha": 0.7, "rank_stabilised": True}, ("peft", "diffusers", "kohya", "lycoris")),
        ({"dora": True, "text_rank": 2}, ("peft", "diffusers", "kohya", "lycoris")),
        ({"new_word": True, "trigger": "milo0"}, ("diffusers", "kohya", "lycoris")),
        ({"method": "krona", "factors": (2, 2)}, ("peft", "diffusers", "kohya", "lycoris")),
        ({"method": "lokr", "rank": 2, "alpha": 0.7}, ("kohya", "lycoris")),
        ({"method": "loha", "rank": 2, "alpha": 0.7}, ("kohya", "lycoris")),
        ({"init": "pissa", "alpha": 0.7, "ema": 0.9}, ("peft", "kohya")),
    ],
)
def test_every_further_file_changes_what_the_concepts_own_does(
    tiny_sdxl: Path, home: Home, kind: dict[str, Any], formats: tuple[str, ...]
) -> None:
    concept = train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 2} | kind), home, export=formats)
    own = load_concept(concept)
    card = (concept.folder / "README.md").read_text(encoding="utf-8")
    for name in formats:
        path = concept.folder / f"milo.{name}{'' if name == 'peft' else '.safetensors'}"
        other = load_adapter(path)
        assert f"`{path.name}`" in card
        assert set(other.layers) == set(own.layers)
        for layer in own.layers:
            for one, same in zip(parts(other.factors[layer]), parts(own.factors[layer]), strict=True):
                torch.testing.assert_close(one, same, atol=1e-6, rtol=1e-5)
        assert other.embeddings.keys() == own.embeddings.keys()


@pytest.mark.parametrize("target", ["peft", "lycoris"])
def test_a_further_file_with_one_wrong_number_is_not_kept(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    write = exports.write_adapter

    def damaging(adapter: Adapter, path: Path, to: Target) -> Written:
        written = write(adapter, path, to)
        file = path / "adapter_model.safetensors" if to == "peft" else path
        tensors, notes = load_file(file), read_header(file).metadata
        if to == target:
            next(one for one in tensors.values() if one.dim() > 1).view(-1)[0] *= 1.01
        save_file(tensors, file, notes)
        return written

    recipe = tiny_recipe(tiny_sdxl, home, {"steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(exports, "write_adapter", damaging)
        with pytest.raises(StudioError, match=rf"milo\.{target}.*: 1 of \d+ layers differ"):
            train_concept(recipe, home, export=("peft", "lycoris"))
    assert Library(home).concepts() == []
    assert not list(workplace_of(home, "milo").folder.glob("milo.*"))
    assert train_concept(recipe, home, export=("peft", "lycoris"), resume=True).name == "milo"


@pytest.mark.parametrize(
    ("kind", "formats", "said"),
    [
        ({}, ("koya",), "no format 'koya'"),
        ({"method": "oft", "block_size": 4}, ("lycoris", "kohya"), "--export kohya cannot hold what is trained"),
        ({}, ("kohya", ""), "no format ''"),
        ({"new_word": True, "trigger": "milo0"}, ("kohya", "peft"), "--export peft cannot hold what is trained"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_the_base_is_loaded(
    tiny_sdxl: Path,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
    formats: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr("studio.trainers.dreambooth.load_base", lambda *_: pytest.fail("the base was loaded"))
    with pytest.raises(UsageError, match=said):
        train_concept(tiny_recipe(tiny_sdxl, home, kind), home, export=formats)
    assert Library(home).concepts() == []


def test_the_formats_that_can_hold_it_are_named(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"new_word": True, "trigger": "milo0"})
    with pytest.raises(UsageError) as caught:
        check_exports(recipe, ("peft",))
    assert caught.value.remedy == "Choose among diffusers, kohya, lycoris."
    assert check_exports(recipe, ("kohya", "kohya")) == ("kohya",)


def test_the_command_writes_them_and_the_library_lists_them(
    run_studio: Callable[..., Any], tiny_sdxl: Path, home: Home
) -> None:
    from studio.trainers.recipe import write_toml

    write_toml(tiny_recipe(tiny_sdxl, home, {"steps": 1}), home.root / "recipe.toml")
    assert run_studio("train-concept", "--config", home.root / "recipe.toml", "--export", "kohya, lycoris").code == 0
    shown = run_studio("library", "show", "milo").out
    assert "milo.kohya.safetensors, milo.lycoris.safetensors" in shown


def test_previews_stand_in_rows_of_prompts_and_columns_of_steps(tiny_sdxl: Path, home: Home, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"sample_prompts": ("a sks cat", "a cat"), "seed": 7})
    colours = {(0, 0): "red", (0, 1): "lime", (6, 0): "blue", (6, 1): "yellow", (3, 0): "black"}
    for (step, n), colour in colours.items():
        Image.new("RGB", (400, 400), colour).save(tmp_path / f"step-{step:06d}-{n}.png")
    assert draw_grid(tmp_path, recipe, tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as sheet:
        width, height = sheet.size
        middles = [
            [sheet.getpixel((width - 100 - 196 * column, height - 100 - 196 * row)) for column in (1, 0)]
            for row in (1, 0)
        ]
    assert middles == [[(255, 0, 0), (0, 0, 255)], [(0, 255, 0), (255, 255, 0)]]


def test_without_previews_there_is_no_sheet(tiny_sdxl: Path, home: Home, tmp_path: Path) -> None:
    assert not draw_grid(tmp_path, tiny_recipe(tiny_sdxl, home), tmp_path / "samples.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_cards_code_runs_as_it_stands(home: Home, tmp_path: Path) -> None:
    add_shipped(home)
    concept = Library(home).find("milo")
    write_adapter(load_concept(concept), concept.adapter_file, "diffusers")  # as a training does
    recipe = build_recipe([read_toml(concept.folder / "recipe.toml")])
    write_card(concept, recipe, {}, loads=True, samples=False, exports=[])
    (code,) = re.findall(r"```python\n(.*?)```", (concept.folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    quick = code.replace("pipe(", "pipe(num_inference_steps=1, prompt=")
    subprocess.run([sys.executable, "-c", quick], cwd=concept.folder, check=True)
    assert Image.open(concept.folder / "milo.png").size == (96, 96)


@pytest.mark.parametrize(
    ("base", "call"),
    [
        ("sdxl", 'from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")'),
        ("/models/mine", 'from_pretrained("/models/mine")'),
        ("/models/mine.safetensors", 'from_single_file("/models/mine.safetensors")'),
    ],
)
def test_the_card_loads_the_base_as_diffusers_does(base: str, call: str, tiny_sdxl: Path, home: Home) -> None:
    concept = replace(train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 1}), home), base=base)
    write_card(concept, tiny_recipe(tiny_sdxl, home), {}, loads=True, samples=False, exports=[])
    assert f"StableDiffusionXLPipeline.{call}" in (concept.folder / "README.md").read_text(encoding="utf-8")
