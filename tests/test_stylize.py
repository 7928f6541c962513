"""B-LoRA's four tasks, held against the dense formula and against how its authors infer."""

import dataclasses
from typing import Any

import diffusers
import pytest
import torch
from fixtures_models import build_lora
from safetensors.torch import load_file, save_file
from test_attaching import snapshot
from test_generate import difference

from studio.concepts import Concept
from studio.errors import StudioError, UsageError
from studio.events import Notice, Step, silent
from studio.models import find_base, load_base
from studio.pipelines.generate import generate
from studio.pipelines.settings import GenerateSettings
from studio.pipelines.stylize import stylize

BLOCKS = {"content": "unet.up_blocks.0.attentions.0.", "style": "unet.up_blocks.0.attentions.1."}
SETTINGS = GenerateSettings("a <milo> in <neon>", steps=3, guidance=4.0, seed=7)


@pytest.fixture(scope="module")
def base(tiny_sdxl):
    return load_base(find_base(str(tiny_sdxl)), "cpu")


def concept(tiny_sdxl, folder, name: str, words: tuple[str, str], seed: int, keep=lambda key: True) -> Concept:
    """A random LoRA of the whole UNet and the text encoders, or what `keep` leaves of it."""
    file = build_lora(tiny_sdxl, folder / "adapter.safetensors", seed=seed, rank=3, alpha=3, text=True)
    save_file({key: tensor for key, tensor in load_file(file).items() if keep(key)}, file)
    return Concept(name, *words, "tiny", "sdxl", "lora", folder)


@pytest.fixture(scope="module")
def milo(tiny_sdxl, tmp_path_factory):
    return concept(tiny_sdxl, tmp_path_factory.mktemp("milo"), "milo", ("sks", "cat"), 1)


@pytest.fixture(scope="module")
def neon(tiny_sdxl, tmp_path_factory):
    return concept(tiny_sdxl, tmp_path_factory.mktemp("neon"), "neon", ("zwx", "style"), 2)


def weights(base) -> dict[str, torch.Tensor]:
    parts = {"unet": base.unet, "text_encoder": base.text_encoders[0], "text_encoder_2": base.text_encoders[1]}
    return {
        f"{part}.{name}": value.clone() for part, model in parts.items() for name, value in model.state_dict().items()
    }


def acting(base, **halves: Any) -> dict[str, torch.Tensor]:
    """By the name of a weight, how much it is changed while pictures are drawn."""
    own, seen = weights(base), {}

    def look(event) -> None:
        if isinstance(event, Step) and not seen:
            seen.update({name: value - own[name] for name, value in weights(base).items()})

    names = [f"<{one[0].name}>" for one in halves.values()]
    stylize(base, dataclasses.replace(SETTINGS, prompt=" ".join(names), steps=1), look, **halves)
    return {name: change for name, change in seen.items() if change.any()}


def dense(concept: Concept, role: str) -> dict[str, torch.Tensor]:
    """up @ down of every layer of the half, by the name of its weight; alpha is the rank."""
    pairs = load_file(concept.adapter_file)
    layers = [key.removesuffix(".lora_A.weight") for key in pairs if key.endswith(".lora_A.weight")]
    return {
        f"{layer}.weight": pairs[f"{layer}.lora_B.weight"] @ pairs[f"{layer}.lora_A.weight"]
        for layer in layers
        if layer.startswith(BLOCKS[role])
    }


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7])
@pytest.mark.parametrize("role", ["content", "style"])
def test_a_half_acts_linearly_in_its_block_and_nowhere_else(base, milo, role, strength):
    found, truth = acting(base, **{role: (milo, strength)}), dense(milo, role)
    assert found.keys() == truth.keys()
    assert len(truth) == 2 * 2 * 4  # transformer blocks, attentions, projections
    for name, change in truth.items():
        torch.testing.assert_close(found[name], strength * change, atol=1e-6, rtol=1e-5)


def test_both_halves_act_side_by_side(base, milo, neon):
    found = acting(base, content=(milo, 0.5), style=(neon, 2.0))
    truth = {name: 0.5 * change for name, change in dense(milo, "content").items()}
    truth |= {name: 2.0 * change for name, change in dense(neon, "style").items()}
    assert found.keys() == truth.keys()
    for name, change in truth.items():
        torch.testing.assert_close(found[name], change, atol=1e-6, rtol=1e-5)


def test_strengths_squared_are_what_the_authors_code_draws(base, milo, neon, tiny_sdxl):
    """Which filters keys by a substring, multiplies down and up by alpha, and loads the union as one adapter."""
    theirs: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_sdxl)
    theirs.set_progress_bar_config(disable=True)
    union = {}
    for one, role, alpha in ((milo, "content", 0.4), (neon, "style", 1.6)):
        state, _ = theirs.lora_state_dict(str(one.adapter_file))
        union |= {key: alpha * value for key, value in state.items() if BLOCKS[role] in key}
    theirs.load_lora_into_unet(union, None, theirs.unet)
    (truth,) = theirs(
        "a sks cat in zwx style", num_inference_steps=3, guidance_scale=4.0, height=32, width=32,
        generator=torch.Generator().manual_seed(7),
    ).images  # fmt: skip
    squared, linear = (
        stylize(base, SETTINGS, silent, (milo, c), (neon, s))[0] for c, s in ((0.4**2, 1.6**2), (0.4, 1.6))
    )
    assert difference(squared, truth) <= 1
    assert difference(linear, truth) > 2


def test_one_half_and_words_for_the_other(base, milo, neon):
    only_words = dataclasses.replace(SETTINGS, prompt="a <milo> made of gold")
    (content,) = stylize(base, only_words, silent, content=(milo, 1.0))
    (other,) = generate(base, dataclasses.replace(only_words, prompt="a sks cat made of gold"), [], silent)
    assert difference(content, other) > 2
    written = dataclasses.replace(SETTINGS, prompt="a backpack in zwx style")
    (style,), (called,) = (
        stylize(base, dataclasses.replace(SETTINGS, prompt=prompt), silent, style=(neon, 1.0))
        for prompt in (written.prompt, "a backpack in <neon>")
    )
    assert difference(style, called) == 0
    assert difference(style, generate(base, written, [], silent)[0]) > 2


def test_no_strength_is_the_base(base, milo, neon):
    (found,) = stylize(base, SETTINGS, silent, (milo, 0.0), (neon, 0.0))
    (truth,) = generate(base, dataclasses.replace(SETTINGS, prompt="a sks cat in zwx style"), [], silent)
    assert difference(found, truth) == 0


def test_both_halves_of_one_concept(base, milo):
    found = acting(base, content=(milo, 1.0), style=(milo, 0.5))
    assert found.keys() == dense(milo, "content").keys() | dense(milo, "style").keys()
    said = []
    stylize(base, dataclasses.replace(SETTINGS, prompt="a <milo>"), said.append, (milo, 1.0), (milo, 0.5))
    assert any("the prompt is 'a sks cat'." in event.message for event in said if isinstance(event, Notice))


def notices(base, *halves) -> list[str]:
    said = []
    stylize(base, dataclasses.replace(SETTINGS, steps=1), said.append, *halves)
    return [event.message for event in said if isinstance(event, Notice)]


def test_an_ordinary_lora_is_said_to_be_split_only_nearly(base, milo, neon, tiny_sdxl, tmp_path):
    said = notices(base, (milo, 1.0), (neon, 1.0))
    assert [one.split(":")[0] for one in said if "only approximate" in one] == ["milo_content", "neon_style"]
    trained_so = concept(
        tiny_sdxl, tmp_path, "milo", ("sks", "cat"), 1, keep=lambda key: key.startswith(tuple(BLOCKS.values()))
    )
    assert not [one for one in notices(base, (trained_so, 1.0), (neon, 1.0)) if one.startswith("milo")]


def test_the_base_is_as_before_also_after_an_accident(base, milo):
    before = snapshot(base)

    def accident(event) -> None:
        if isinstance(event, Step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stylize(base, dataclasses.replace(SETTINGS, prompt="a <milo>"), accident, content=(milo, 1.0))
    assert snapshot(base) == before


def test_what_cannot_be_stylized(base, milo, neon, tiny_sdxl, tiny_sd15, tmp_path):
    with pytest.raises(UsageError, match="neither content nor style"):
        stylize(base, SETTINGS, silent)
    with pytest.raises(UsageError, match="does not name <milo>"):
        stylize(base, dataclasses.replace(SETTINGS, prompt="a cat"), silent, (milo, 1.0))
    with pytest.raises(UsageError, match="no block is known"):
        stylize(load_base(find_base(str(tiny_sd15)), "cpu"), SETTINGS, silent, (milo, 1.0))
    half = concept(tiny_sdxl, tmp_path, "half", ("sks", "cat"), 3, keep=lambda key: key.startswith(BLOCKS["style"]))
    with pytest.raises(UsageError, match=r"no content half.*it has 16 of style in up_blocks\.0\.attentions\.1"):
        stylize(base, dataclasses.replace(SETTINGS, prompt="a <half>"), silent, (half, 1.0))
    zero = {key: 0 * value for key, value in load_file(half.adapter_file).items()}
    save_file(zero, half.adapter_file)
    with pytest.raises(StudioError, match="half_style changes nothing"):
        stylize(base, dataclasses.replace(SETTINGS, prompt="a cat"), silent, style=(half, 1.0))


def test_a_b_lora_is_called_a_style_whatever_its_picture_shows(base, milo, neon):
    shown = dataclasses.replace(neon, class_word="house", method="b-lora")
    told: list[Any] = []
    stylize(base, dataclasses.replace(SETTINGS, prompt="a red dog", steps=1), told.append, style=(shown, 1.0))
    assert any(isinstance(one, Notice) and "a red dog, zwx style" in one.message for one in told)
