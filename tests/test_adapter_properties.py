"""Random adapters of every kind and naming come to the change that float64 arithmetic on their tensors gives."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from soaking import tries

from studio.adapters import load_adapter

# Layers of SDXL: (the path in diffusers, Stability's name, the weight's shape made small).
LAYERS = [
    ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
     "input_blocks_4_1_transformer_blocks_0_attn1_to_q", (12, 8)),
    ("down_blocks.2.attentions.1.transformer_blocks.3.attn2.to_v",
     "input_blocks_8_1_transformer_blocks_3_attn2_to_v", (8, 12)),
    ("up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_out.0",
     "output_blocks_2_1_transformer_blocks_0_attn1_to_out_0", (12, 12)),
    ("up_blocks.1.attentions.1.transformer_blocks.1.attn2.to_k",
     "output_blocks_4_1_transformer_blocks_1_attn2_to_k", (6, 10)),
    ("mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj",
     "middle_block_1_transformer_blocks_1_ff_net_0_proj", (24, 8)),
    ("up_blocks.1.attentions.1.proj_out", "output_blocks_4_1_proj_out", (8, 8)),
    ("mid_block.resnets.1.time_emb_proj", "middle_block_2_emb_layers_1", (8, 16)),
    ("down_blocks.1.resnets.0.conv1", "input_blocks_4_0_in_layers_2", (8, 4, 3, 3)),
    ("up_blocks.2.resnets.1.conv_shortcut", "output_blocks_7_0_skip_connection", (8, 12, 1, 1)),
    ("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op", (4, 4, 3, 3)),
    ("up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv", (6, 6, 3, 3)),
    ("conv_in", "input_blocks_0_0", (8, 4, 3, 3)),
]  # fmt: skip
ATTENTION = LAYERS[:4]
NAMINGS = ("kohya, Stability's names", "kohya, diffusers' names", "diffusers", "diffusers, alphas in the metadata")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Made:
    """The tensors of one layer by the ends of kohya's keys, and the change that they stand for."""

    parts: dict[str, torch.Tensor]
    change: np.ndarray


class Maker:
    """Random tensors of one type, and their exact values."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def tensor(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)


def exact(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def lora(make: Maker, shape: tuple[int, ...], rank: int, scale: float) -> Made:
    out, into, *kernel = shape
    down, up = make.tensor(rank, into, *kernel), make.tensor(out, rank, *(1 for _ in kernel))
    change = scale * exact(up).reshape(out, rank) @ exact(down).reshape(rank, -1)
    return Made({"lora_down.weight": down, "lora_up.weight": up}, change)


def tucker(make: Maker, shape: tuple[int, ...], rank: int, scale: float) -> Made:
    out, into, *kernel = shape
    down, mid, up = make.tensor(rank, into, 1, 1), make.tensor(rank, rank, *kernel), make.tensor(out, rank, 1, 1)
    change = scale * np.einsum("op,pqhw,qi->oihw", exact(up)[..., 0, 0], exact(mid), exact(down)[..., 0, 0])
    return Made({"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}, change)


def loha(make: Maker, shape: tuple[int, ...], rank: int, scale: float) -> Made:
    out, inputs = shape[0], int(np.prod(shape[1:]))
    ups, downs = [make.tensor(out, rank) for _ in range(2)], [make.tensor(rank, inputs) for _ in range(2)]
    first, second = (exact(up) @ exact(down) for up, down in zip(ups, downs, strict=True))
    parts = {f"hada_w{n + 1}_a": up for n, up in enumerate(ups)} | {f"hada_w{n + 1}_b": d for n, d in enumerate(downs)}
    return Made(parts, scale * first * second)


def loha_tucker(make: Maker, shape: tuple[int, ...], rank: int, scale: float) -> Made:
    out, into, *kernel = shape
    parts, change = {}, np.array(scale)
    for n in (1, 2):
        core, up, down = make.tensor(rank, rank, *kernel), make.tensor(rank, out), make.tensor(rank, into)
        parts |= {f"hada_t{n}": core, f"hada_w{n}_a": up, f"hada_w{n}_b": down}
        change = change * np.einsum("pqhw,po,qi->oihw", exact(core), exact(up), exact(down))
    return Made(parts, change)


def lokr(make: Maker, shape: tuple[int, ...], rank: int, scale: float, split: tuple[bool, bool]) -> Made:
    """a is [2, 2]; `split` says which of a and b is a product of two. Two whole ones have no scale."""
    (out, into, *kernel), parts = shape, {}
    sizes = ((2, 2), (out // 2, into // 2 * int(np.prod(kernel))))
    whole = []
    for n, (rows, columns) in enumerate(sizes, 1):
        if split[n - 1]:
            up, down = make.tensor(rows, rank), make.tensor(rank, columns)
            parts |= {f"lokr_w{n}_a": up, f"lokr_w{n}_b": down}
            whole.append(exact(up) @ exact(down))
        else:
            one = make.tensor(rows, columns)
            parts[f"lokr_w{n}"] = one if n == 1 or not kernel else one.reshape(rows, into // 2, *kernel)
            whole.append(exact(one))
    return Made(parts, (scale if any(split) else 1.0) * np.kron(*whole))


KINDS = {
    "LoRA": lora,
    "LoHa": loha,
    "LoKr": partial(lokr, split=(False, False)),
    "LoKr, b split": partial(lokr, split=(False, True)),
    "LoKr, a split": partial(lokr, split=(True, False)),
    "LoKr, both split": partial(lokr, split=(True, True)),
}
CONVOLUTIONS = {"LoCon, Tucker": tucker, "LoHa, Tucker": loha_tucker}


@st.composite
def layers(draw):
    """(index of the layer, kind, rank, alpha, axis of a DoRA magnitude or None) for some layers."""
    chosen = draw(st.lists(st.sampled_from(range(len(LAYERS))), min_size=1, max_size=5, unique=True))
    made = []
    for index in chosen:
        kinds = {**KINDS, **CONVOLUTIONS} if len(LAYERS[index][2]) == 4 else KINDS
        rank = draw(st.integers(1, 16))
        alpha = draw(st.sampled_from((None, 0.5, 1.0, float(rank), 2.0 * rank)))
        made.append(
            (index, draw(st.sampled_from(sorted(kinds))), rank, alpha, draw(st.sampled_from((None, None, 0, 1))))
        )
    return made


def with_magnitude(made: Made, weight: np.ndarray, magnitude: np.ndarray, axis: int) -> np.ndarray:
    """DoRA's change: every slice along `axis` of the moved weight brought to its magnitude."""
    moved = weight + made.change.reshape(weight.shape)
    slices = np.moveaxis(moved, axis, 0)
    brought = [size * one / np.sqrt((one**2).sum()) for size, one in zip(magnitude, slices, strict=True)]
    return np.moveaxis(np.stack(brought), 0, axis) - weight


def keys_of(naming: str, path: str, sgm: str, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if naming.startswith("diffusers"):
        sides = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
        return {f"unet.{path}.{sides.get(part, part)}": tensor for part, tensor in parts.items()}
    name = sgm if "Stability" in naming else path.replace(".", "_")
    return {f"lora_unet_{name}.{part}": tensor for part, tensor in parts.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("random") / "a.safetensors"


def check(file: Path, truths: dict[str, np.ndarray], weights: dict[str, torch.Tensor]) -> None:
    adapter = load_adapter(file)
    assert set(adapter.layers) == set(truths)
    assert adapter.unread == ()
    for layer, truth in truths.items():
        weight = weights[layer]
        found = adapter.delta(layer, weight).double().numpy().reshape(truth.shape)
        assert np.abs(found - truth).max() <= 1e-5 * (np.abs(truth).max() + float(weight.abs().max()))


@tries(usual=150, soak=2000)
@given(st.integers(0, 2**32), st.sampled_from(NAMINGS), st.sampled_from(DTYPES), layers())
def test_every_kind_in_every_naming_gives_its_dense_change(file, seed, naming, dtype, chosen):
    make, tensors, truths, weights, patterns = Maker(seed, dtype), {}, {}, {}, {}
    for index, kind, rank, alpha, axis in chosen:
        path, sgm, shape = LAYERS[index]
        made = {**KINDS, **CONVOLUTIONS}[kind](make, shape, rank, 1.0 if alpha is None else alpha / rank)
        layer, weight = f"unet.{path}", torch.randn(shape, generator=make.generator)
        parts, truth = dict(made.parts), made.change.reshape(shape)
        if axis is not None:
            magnitude = make.tensor(shape[axis]).abs() + 0.5
            truth = with_magnitude(made, exact(weight), exact(magnitude), axis)
            parts["dora_scale"] = magnitude.reshape([-1 if d == axis else 1 for d in range(len(shape))])
        if alpha is not None and "metadata" in naming:
            patterns[path] = alpha
        elif alpha is not None:
            parts["alpha"] = torch.tensor(alpha)
        tensors |= keys_of(naming, path, sgm, parts)
        truths[layer], weights[layer] = truth, weight
    settings_text = json.dumps({"unet.alpha_pattern": patterns}) if patterns else "{}"
    save_file({k: t.contiguous() for k, t in tensors.items()}, file, {"lora_adapter_metadata": settings_text})
    check(file, truths, weights)


@tries(usual=40, soak=500)
@given(st.integers(0, 2**32), st.sampled_from(DTYPES), st.data())
def test_files_of_ibm_give_their_dense_change(file, seed, dtype, data):
    make, tensors, truths, weights, mismatched = Maker(seed, dtype), {}, {}, {}, False
    for path, _, (out, into) in data.draw(st.lists(st.sampled_from(ATTENTION), min_size=1, unique=True)):
        a1 = data.draw(st.sampled_from([n for n in range(1, out + 1) if out % n == 0]))
        a2 = data.draw(st.sampled_from([n for n in range(1, into + 1) if into % n == 0]))
        down, up = make.tensor(a2, a1), make.tensor(out // a1, into // a2)  # a transposed, and b
        mismatched |= down.shape[0] != up.shape[1]
        place, _, name = path.removesuffix(".0").rpartition(".")
        start = f"unet.{place}.processor.{name}_lora"
        tensors |= {f"{start}.down.weight": down, f"{start}.up.weight": up}
        truth = np.empty((out, into))
        for row in range(out):
            for column in range(into):  # W[p a1 + q, i b2 + j] = a[q, i] b[p, j]
                p, q = divmod(row, a1)
                i, j = divmod(column, into // a2)
                truth[row, column] = exact(down)[i, q] * exact(up)[p, j]
        truths[f"unet.{path}"], weights[f"unet.{path}"] = truth, torch.zeros(out, into)
    assume(mismatched)  # else the file is one of LoRA
    save_file(tensors, file)
    check(file, truths, weights)
