import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from studio.adapter_norms import (
    block_norms,
    block_sums,
    intruder_counts,
    intruders,
    layer_norms,
    norm_of,
    strangers,
    suspicious_values,
)
from studio.adapter_report import report_on, sha256
from studio.adapters import load_adapter
from studio.factors import Factor, Full, Hadamard, Kronecker, LowRank
from studio.models import find_base, load_base

UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_"
MID = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
KEY = f"{UNET}to_k"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(name: str, rank: int, inputs: int, outputs: int, alpha: float | None = None) -> dict[str, torch.Tensor]:
    made = {f"{name}.lora_down.weight": random(rank, inputs), f"{name}.lora_up.weight": random(outputs, rank, seed=1)}
    return made if alpha is None else made | {f"{name}.alpha": torch.tensor(alpha)}


@pytest.fixture
def write(tmp_path: Path):
    def writes(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / "one.safetensors"
        save_file(tensors, path, metadata)
        return path

    return writes


def report(path: Path, values: bool = False):
    return report_on(load_adapter(path, values=values), path)


def test_blocks_ranks_and_counts(write):
    path = write(pair(KEY, 4, 768, 16, 2.0) | pair(f"{UNET}to_v", 8, 768, 16, 8.0) | pair(TEXT, 2, 768, 768, 2.0))
    found = report(path)
    assert found.format == "kohya"
    assert found.family == "sd15"
    assert found.kinds == {"LoRA": 3}
    assert (found.layers, found.parameters) == (3, 12 * (768 + 16) + 2 * 2 * 768)
    assert found.bytes == path.stat().st_size
    text, unet = found.blocks
    assert (text.name, text.layers, text.parameters, text.ranks, text.alphas) == ("text_encoder", 1, 3072, (2,), (2.0,))
    assert (unet.name, unet.layers, unet.ranks, unet.alphas) == ("unet.down_blocks.1", 2, (4, 8), (2.0, 8.0))
    assert not found.halves


def test_the_hash_is_that_of_the_bytes(write):
    import hashlib

    path = write(pair(KEY, 4, 768, 16))
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("blocks", "halves"), [((0, 1), ("content", "style")), ((0,), ("content",)), ((1,), ("style",)), ((0, 2), ())]
)
def test_a_b_lora_is_told_by_its_place(write, blocks: tuple[int, ...], halves: tuple[str, ...]):
    tensors = {}
    for n in blocks:
        start = f"unet.up_blocks.0.attentions.{n}.transformer_blocks.0.attn1.to_q.lora"
        tensors |= {f"{start}.down.weight": random(4, 32), f"{start}.up.weight": random(32, 4)}
    assert report(write(tensors)).halves == halves


def test_words_of_strangers_are_cut_and_cleaned(write):
    tags = {
        "10_cat": {"cat": 10, "\x1b[31mred\x1b[0m": 4, "no": -3, "text": "x"},
        "5_dog": {"cat": 2, "dog": 7},
        "x": 1,
    }
    metadata = {
        "ss_tag_frequency": json.dumps(tags),
        "ss_network_args": "\x1b]0;title\x07a" + "b" * 5000,
        "modelspec.title": "<script>alert(1)</script>",
        "modelspec.trigger_phrase": "a sks cat",
        "studio.steps": "100",
        "something.else": "not shown",
    }
    found = report(write(pair(KEY, 4, 768, 16), metadata))
    assert found.tags == (("cat", 12), ("dog", 7), ("red", 4))
    assert set(found.training) == {"ss_network_args", "modelspec.title", "modelspec.trigger_phrase", "studio.steps"}
    assert found.training["ss_network_args"].startswith("abbb")
    assert len(found.training["ss_network_args"]) == 200
    assert "a sks cat" in found.triggers


@pytest.mark.parametrize("text", ["", "[", "[1]", "{}", '{"a": [1]}', '{"a": {"b": 1e400}}', "[" * 100_000])
def test_tags_that_are_no_tags_are_no_error(write, text: str):
    assert report(write(pair(KEY, 4, 768, 16), {"ss_tag_frequency": text})).tags == ()


def test_a_clean_file_raises_no_suspicion(write):
    found = report(write(pair(KEY, 4, 768, 16, 4.0) | pair(f"{UNET}to_v", 4, 768, 16, 4.0)))
    assert found.suspicious == ()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (pair(KEY, 4, 768, 16, 4.0) | pair(f"{UNET}to_v", 4, 768, 16, 1.0), "the alphas differ: 4 (1 layers), 1 (1 l"),
        (pair(KEY, 4, 768, 16, 4.0) | pair(f"{UNET}to_v", 4, 768, 16), "1 layers state no alpha"),
        (pair(KEY, 4, 768, 16), "1 layers state no alpha"),
        (pair(KEY, 4, 768, 16, 32.0), "more than 4 times the rank in 1 layers"),
        (pair(KEY, 4, 768, 16, float("nan")), "1 alphas are not finite numbers"),
        (pair(KEY, 4, 768, 16, 4.0) | {f"{UNET}to_v.lora_down.weight": random(4, 8)}, "1 tensors belong to layers"),
        (pair(KEY, 4, 768, 16, 4.0) | {"a\x1b[2J.b": random(2)}, "1 keys are of no known"),
    ],
    ids=["mixed alphas", "an alpha missing", "all missing", "high", "nan", "half a pair", "unknown"],
)  # fmt: skip
def test_what_is_suspicious_is_said_from_the_header(write, tensors: dict[str, torch.Tensor], said: str):
    found = report(write(tensors))
    assert [one for one in found.suspicious if said in one], found.suspicious


def test_diffusers_files_state_no_alpha_and_need_none(write):
    start = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    found = report(write({f"{start}.lora_A.weight": random(4, 8), f"{start}.lora_B.weight": random(8, 4)}))
    assert found.suspicious == ()


def test_what_is_suspicious_in_the_values(write):
    tensors = pair(KEY, 4, 768, 16, 4.0) | pair(MID, 4, 16, 16, 4.0) | pair(f"{UNET}to_v", 4, 768, 16, 4.0)
    tensors[f"{MID}.lora_up.weight"].zero_()
    tensors[f"{KEY}.lora_up.weight"][3, 2] = float("inf")
    adapter = load_adapter(write(tensors))
    infinite, zero = suspicious_values(adapter, layer_norms(adapter))
    assert "1 layers hold values that are not finite numbers" in infinite
    assert "attn2.to_k" in infinite
    assert "1 layers change nothing" in zero
    assert "mid_block" in zero


@pytest.mark.parametrize(
    "factor",
    [
        LowRank(random(3, 20), random(24, 3, seed=1), 0.5),
        LowRank(random(3, 5, 3, 3), random(12, 3, 1, 1, seed=1), 6.0),
        LowRank(random(3, 5, 1, 1), random(12, 3, 1, 1, seed=1), 6.0, random(3, 3, 3, 3, seed=2)),
        Kronecker(random(4, 5), random(6, 4, seed=1)),
        Kronecker(LowRank(random(2, 5), random(4, 2)), LowRank(random(2, 4), random(6, 2)), 1.0, "ibm"),
        Hadamard(LowRank(random(3, 20), random(24, 3)), LowRank(random(2, 20), random(24, 2)), 1.0),
        Full(random(24, 20)),
    ],
    ids=["linear", "conv", "tucker", "kron", "ibm", "loha", "full"],
)
def test_a_norm_is_that_of_the_dense_change(factor: Factor):
    assert norm_of(factor) == pytest.approx(float(factor.delta().double().norm()), rel=1e-6)


def test_a_blocks_norm_is_that_of_all_its_layers(write):
    adapter = load_adapter(write(pair(KEY, 4, 768, 16, 2.0) | pair(f"{UNET}to_v", 4, 768, 16) | pair(MID, 2, 16, 16)))
    layers = [layer for layer in adapter.layers if "down_blocks" in layer]
    together = torch.cat([adapter.delta(layer).double().flatten() for layer in layers])
    norms = block_norms(layer_norms(adapter))
    assert norms["unet.down_blocks.1"] == pytest.approx(float(together.norm()), rel=1e-6)
    assert set(norms) == {"unet.down_blocks.1", "unet.mid_block"}


def test_a_small_change_along_the_weights_own_directions_is_no_intruder():
    weight = random(64, 48)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    assert intruders(weight, 0.01 * u[:, :5] * s[:5] @ v[:5]) == 0
    assert intruders(weight, torch.zeros_like(weight)) == 0


@pytest.mark.parametrize("rank", [1, 4, 10])
def test_a_huge_change_of_some_rank_brings_as_many_intruders(rank: int):
    weight = random(256, 200)
    change = 1000 * random(256, rank, seed=1) @ random(rank, 200, seed=2)
    assert intruders(weight, change) == rank


def test_a_convolution_counts_like_its_matrix():
    weight, change = random(128, 8, 3, 3), 10 * random(128, 2, seed=1) @ random(2, 72, seed=2)
    assert intruders(weight, change.reshape(weight.shape)) == intruders(weight.flatten(1), change) > 0


def test_intruders_of_a_base_by_brute_force(tiny_sdxl, tiny_loras):
    base, adapter = load_base(find_base(str(tiny_sdxl)), "cpu"), load_adapter(tiny_loras[1])
    counts = intruder_counts(adapter, base)
    assert counts.keys() == adapter.factors.keys()
    for layer in adapter.factors:
        component, path = layer.split(".", 1)
        modules = dict(getattr(base.pipe, component).named_modules())
        module = modules.get(path) or modules[path.removeprefix("text_model.")]
        weight = module.weight.double().numpy()
        own, _, _ = np.linalg.svd(weight, full_matrices=False)
        new, _, _ = np.linalg.svd(weight + adapter.delta(layer).double().numpy(), full_matrices=False)
        expected = sum(max(abs(float(a @ b)) for b in own.T) < 0.6 for a in new.T[:10])
        assert counts[layer] == expected
    assert sum(counts.values()) == sum(block_sums(counts).values()) > 0
    assert strangers(adapter, base) == []


def test_layers_that_the_base_lacks_are_told(tiny_sdxl, write):
    adapter = load_adapter(write(pair(MID, 2, 999, 16)))
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    assert intruder_counts(adapter, base) == {}
    assert "1 layers do not fit the base" in strangers(adapter, base)[0]


def test_dora_is_measured_with_its_base(tiny_sdxl, write):
    adapter = load_adapter(write(pair(MID, 2, 16, 16) | {f"{MID}.dora_scale": 3 * torch.ones(16, 1)}))
    assert layer_norms(adapter) == {}
    assert "--base" in suspicious_values(adapter, {})[0]
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    weight = base.unet.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    moved = (weight + random(16, 2, seed=1) @ random(2, 16)).double()
    change = 3 * moved / moved.norm(dim=1, keepdim=True) - weight.double()
    (norm,) = layer_norms(adapter, base).values()
    assert norm == pytest.approx(float(change.norm()), rel=1e-5)
