"""Adapters for Flux in the names of its makers mean what diffusers' own reader makes of them."""

from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors.torch import load_file, save_file

from studio.adapter_writing import write_adapter
from studio.adapters import load_adapter
from studio.errors import UsageError
from studio.importing import Arrival, import_adapter
from studio.library import Library

WIDTH = 3072  # which diffusers' reader counts on
DOUBLE = {"attn_qkv": (3, 1), "attn_proj": (1, 1), "mlp_0": (4, 1), "mlp_2": (1, 4), "mod_lin": (6, 1)}
SINGLE = {"linear1": (7, 1), "linear2": (1, 5), "modulation_lin": (3, 1)}
ALONE = {
    "img_in": (WIDTH, 64), "txt_in": (WIDTH, 96), "time_in_in_layer": (WIDTH, 32), "time_in_out_layer": (WIDTH, WIDTH),
    "vector_in_in_layer": (WIDTH, 48), "vector_in_out_layer": (WIDTH, WIDTH), "final_layer_linear": (64, WIDTH),
    "final_layer_adaLN_modulation_1": (2 * WIDTH, WIDTH),
}  # fmt: skip


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Every layer of kohya's names, of rank and alpha 2."""
    sizes = {f"double_blocks_0_{s}_{k}": size for s in ("img", "txt") for k, size in DOUBLE.items()}
    sizes |= {f"single_blocks_0_{name}": size for name, size in SINGLE.items()}
    wide = {name: (out * WIDTH, fan_in * WIDTH) for name, (out, fan_in) in sizes.items()} | ALONE
    made = {}
    for name, (out, fan_in) in wide.items():
        key = f"lora_unet_{name}"
        made |= {f"{key}.lora_down.weight": drawn(2, fan_in), f"{key}.lora_up.weight": drawn(out, 2)}
        made[f"{key}.alpha"] = torch.tensor(2.0)
    return made


def test_every_layer_is_the_one_that_diffusers_makes_of_it(tensors, tmp_path):
    save_file(tensors, tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    truth = _convert_kohya_flux_lora_to_diffusers({key: tensor.clone() for key, tensor in tensors.items()})
    layers = {key.removesuffix(".lora_A.weight") for key in truth if key.endswith(".lora_A.weight")}
    named = {layer if layer.startswith("transformer.") else f"transformer.{layer}": layer for layer in layers}
    assert (set(adapter.factors), adapter.unread, adapter.family) == (set(named), (), "flux")
    x = torch.randn(8, 5 * WIDTH)
    for layer, theirs in named.items():
        one: Any = adapter.factors[layer]
        down = truth[f"{theirs}.lora_A.weight"]
        here = one.up @ (one.down @ x[:, : down.shape[1]].T)
        assert torch.allclose(here, truth[f"{theirs}.lora_B.weight"] @ (down @ x[:, : down.shape[1]].T), atol=1e-3)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model."])
def test_other_prefixes_name_the_same_layers(tmp_path, prefix):
    names = {
        "img_in": "x_embedder", "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear",
    }  # fmt: skip
    pairs = {f"{prefix}{name}.lora_{side}.weight": drawn(8, 8) for name in names for side in "AB"}
    save_file(pairs, tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    assert set(adapter.factors) == {f"transformer.{name}" for name in names.values()}
    for target in ("diffusers", "peft"):
        write_adapter(adapter, tmp_path / target, target)
        assert load_adapter(tmp_path / target).factors.keys() == adapter.factors.keys()


QKV = "lora_unet_double_blocks_0_img_attn_qkv"
PARTS = [f"transformer.transformer_blocks.0.attn.to_{one}" for one in "qkv"]


@pytest.mark.parametrize("kind", ["LoHa", "DoRA", "whole"])
def test_what_is_of_rows_is_cut_by_rows(tmp_path, kind):
    a, b, c, d = drawn(24, 2), drawn(2, 8), drawn(24, 2).flip(0).contiguous(), drawn(2, 8) + 1
    weight, magnitude, bias = drawn(24, 8).double(), drawn(24, 1).abs(), drawn(24)
    product = a.double() @ b.double()
    if kind == "LoHa":
        parts, truth = (
            {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d},
            product * (c.double() @ d.double()),
        )
    elif kind == "DoRA":
        moved = weight + product
        parts = {"lora_up.weight": a, "lora_down.weight": b, "dora_scale": magnitude}
        truth = magnitude.double() * moved / moved.norm(dim=1, keepdim=True) - weight
    else:
        parts, truth = {"diff": a @ b, "diff_b": bias}, product
    save_file({f"{QKV}.{name}": tensor for name, tensor in parts.items()}, tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    assert list(adapter.factors) == PARTS
    for n, layer in enumerate(PARTS):
        rows = slice(8 * n, 8 * n + 8)
        assert (adapter.delta(layer, weight[rows]).double() - truth[rows]).abs().max() < 1e-5
    assert torch.equal(torch.cat([adapter.biases[layer] for layer in PARTS]), bias) if kind == "whole" else True


def test_what_cannot_be_cut_is_refused_where_the_parts_are_wanted(tmp_path):
    lokr = {f"{QKV}.lokr_w1": drawn(2, 2), f"{QKV}.lokr_w2": drawn(12, 4), f"{QKV}.alpha": torch.tensor(1.0)}
    by_input = {f"{QKV}.lora_up.weight": drawn(24, 2), f"{QKV}.lora_down.weight": drawn(2, 8)}
    for tensors in (lokr, by_input | {f"{QKV}.dora_scale": drawn(1, 8)}):
        save_file(tensors, tmp_path / "a")
        adapter = load_adapter(tmp_path / "a")
        for target in ("diffusers", "peft"):
            with pytest.raises(UsageError, match=r"double_blocks\.0\.img_attn\.qkv"):
                write_adapter(adapter, tmp_path / "b", target)


@pytest.mark.parametrize(
    "name",
    ["joint_blocks_0_context_block_attn_qkv", "blocks_0_self_attn_q", "blocks_0_attn1_Wqkv", "layers_0_attention_to_q"],
)
def test_layers_of_unknown_networks_get_no_made_up_names(tmp_path, name):
    save_file({f"lora_unet_{name}.lora_{side}.weight": drawn(8, 8) for side in ("down", "up")}, tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    assert adapter.family is None
    for target in ("diffusers", "peft"):
        with pytest.raises(UsageError, match="no network that the studio knows"):
            write_adapter(adapter, tmp_path / "b", target)
    write_adapter(adapter, tmp_path / "b", "kohya")  # as it was named
    assert load_file(tmp_path / "b").keys() == load_file(tmp_path / "a").keys()


@pytest.mark.parametrize(
    ("layer", "family"),
    [("transformer_blocks.0.attn.to_q", None), ("single_transformer_blocks.0.attn.to_q", "flux"),
     ("double_blocks.0.img_mlp.0", "flux"), ("single_blocks.0.linear2", "flux")],
)  # fmt: skip
def test_a_transformer_is_flux_only_where_it_has_flux_blocks(tmp_path, layer, family):
    pair = {f"transformer.{layer}.lora_{side}.weight": drawn(8, 8) for side in "AB"}
    save_file(pair, tmp_path / "a")
    assert load_adapter(tmp_path / "a").family == family
    save_file(pair, tmp_path / "b", {"modelspec.architecture": "stable-diffusion-3/lora"})
    assert load_adapter(tmp_path / "b").family == (family or "sd3")


def test_a_transformer_that_is_not_known_is_not_taken_in(tmp_path, home):
    pair = {f"transformer.transformer_blocks.0.attn.to_q.lora_{side}.weight": drawn(8, 8) for side in "AB"}
    save_file(pair, tmp_path / "a")
    with pytest.raises(UsageError, match="a transformer of a family that the studio does not know"):
        import_adapter(Library(home), Arrival(tmp_path / "a", "milo", "cat", "sks", "sdxl"))
