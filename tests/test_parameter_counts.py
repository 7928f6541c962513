"""How large adapters of the whole SDXL are, counted on its real shapes without memory for them."""

from typing import Any

import diffusers as typed_diffusers
import pytest
import torch

from studio.factors import Factor, Kronecker, LowRank, tensors_of

diffusers: Any = typed_diffusers
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
B_LORA = ("up_blocks.0.attentions.0.", "up_blocks.0.attentions.1.")
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}


def build(config: dict[str, Any]) -> torch.nn.Module:
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**config)


@pytest.fixture(scope="module")
def sdxl() -> torch.nn.Module:
    return build(SDXL)


@pytest.fixture(scope="module")
def sd15() -> torch.nn.Module:
    return build(SD15)


def attention(unet: torch.nn.Module, prefixes: tuple[str, ...] = ("",)) -> list[tuple[int, int]]:
    """(outputs, inputs) of the projections of every attention."""
    found = [m for name, m in unet.named_modules() if name.endswith(ATTENTION) and name.startswith(prefixes)]
    return [(layer.out_features, layer.in_features) for layer in found if isinstance(layer, torch.nn.Linear)]


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def lora(sizes: list[tuple[int, int]], rank: int) -> list[Factor]:
    return [LowRank(empty(rank, inputs), empty(outputs, rank)) for outputs, inputs in sizes]


def krona(sizes: list[tuple[int, int]], a1: int, a2: int) -> list[Factor]:
    return [Kronecker(empty(a1, a2), empty(outputs // a1, inputs // a2)) for outputs, inputs in sizes]


def count(factors: list[Factor]) -> int:
    return sum(tensor.numel() for factor in factors for tensor in tensors_of(factor))


def test_the_unet_is_the_real_one(sdxl):
    assert sum(weight.numel() for weight in sdxl.parameters()) == 2_567_463_684
    sizes = attention(sdxl)
    assert {size: sizes.count(size) for size in set(sizes)} == {
        (1280, 1280): 360, (1280, 2048): 120, (640, 640): 60, (640, 2048): 20,
    }  # fmt: skip
    assert sum(outputs * inputs for outputs, inputs in sizes) == 955_187_200


@pytest.mark.parametrize(
    ("rank", "parameters"),
    [
        (1, 1_451_520), (4, 5_806_080), (8, 11_612_160), (16, 23_224_320), (32, 46_448_640), (64, 92_897_280),
        (128, 185_794_560),
    ],
)  # fmt: skip
def test_lora_on_sdxl(sdxl, rank: int, parameters: int):
    assert count(lora(attention(sdxl), rank)) == parameters


@pytest.mark.parametrize(
    ("shapes", "parameters", "against_lora_4"),
    [
        (((8, 8),), 14_960_640, 158),
        (((64, 2),), 7_534_080, 30),
        (((64, 4), (4, 64), (16, 16), (32, 8)), 3_874_560, -33.3),
        (((64, 8), (8, 64), (32, 16)), 2_152_320, -62.9),
        (((64, 16), (32, 32), (128, 8)), 1_506_240, -74.1),
        (((64, 32),), 1_613_280, None),
        (((64, 64),), 2_526_960, None),
    ],
)
def test_kronecker_on_sdxl(sdxl, shapes: tuple[tuple[int, int], ...], parameters: int, against_lora_4: float | None):
    sizes = attention(sdxl)
    assert {count(krona(sizes, a1, a2)) for a1, a2 in shapes} == {parameters}
    if against_lora_4 is not None:
        assert round(100 * (parameters / count(lora(sizes, 4)) - 1), 1) == pytest.approx(against_lora_4, abs=0.5)


def test_the_factors_make_the_layers(sdxl):
    """Every product has the shape of the weight that it changes."""
    sizes = attention(sdxl)
    for factor, size in zip(krona(sizes, 64, 8) + lora(sizes, 4), sizes * 2, strict=True):
        assert factor.delta().shape == size


def test_b_lora_on_sdxl(sdxl):
    sizes = attention(sdxl, B_LORA)
    assert len(sizes) == 160
    assert count(lora(sizes, 64)) == 28_180_480


def test_stable_diffusion_1(sd15):
    sizes = attention(sd15)
    assert count(lora(sizes, 4)) == 797_184
    assert count(krona(sizes, 64, 8)) == 248_176
    assert count(krona(sizes, 64, 4)) == 398_048
