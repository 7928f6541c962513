"""From factors to the tensors of a file: keys and settings as kohya, LyCORIS, diffusers and PEFT write them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import Any

import torch

from studio.adapter_keys import WORD_PREFIX
from studio.adapter_names import from_sgm, to_sgm
from studio.adapters import Adapter
from studio.errors import UsageError
from studio.factors import Dora, Factor, Full, Hadamard, Kronecker, LowRank
from studio.rotation import Rotation

Tensor = torch.Tensor
Tensors = dict[str, Tensor]


def kohya_tensors(adapter: Adapter, factors: Mapping[str, Factor], lycoris: bool = False) -> Tensors:
    """Tensors by kohya's keys, LyCORIS's where the kind is theirs; SDXL's UNet in Stability's names.

    `lycoris` states the alphas that LyCORIS asks for everywhere. Raises UsageError for a layer that has no name there.
    """
    sgm = adapter.family == "sdxl" or (adapter.family is None and "Stability's names" in adapter.format)
    second = any(layer.startswith("text_encoder_2.") for layer in factors)
    names = {layer: _kohya_name(layer, sgm, sgm or second) for layer in adapter.layers}
    made: Tensors = {}
    for layer, factor in factors.items():
        parts = kohya_parts(_with_alpha(factor) if lycoris else factor)
        made |= {f"{names[layer]}.{part}": tensor for part, tensor in parts.items()}
    for layer, bias in adapter.biases.items():
        factor = factors.get(layer)
        norm = isinstance(factor, Full) and factor.difference.dim() == 1
        made[f"{names[layer]}.{'b_norm' if norm else 'diff_b'}"] = bias
    for token, towers in adapter.embeddings.items():
        for tower, rows in towers.items():
            made[f"bundle_emb.{token}.{'string_to_param.*' if tower == '*' else tower}"] = rows
    return made


def kohya_parts(factor: Factor) -> Tensors:
    """The tensors of one layer by the endings of kohya's and LyCORIS's keys."""
    match factor:
        case LowRank():
            mid = {} if factor.mid is None else {"lora_mid.weight": factor.mid}
            parts = {"lora_down.weight": factor.down, "lora_up.weight": factor.up, **mid}
            return parts | _alpha(plain_alpha(factor) if factor.rank_stabilised else factor.alpha, factor.down)
        case Hadamard():
            parts = _pair("hada_w1", "hada_t1", factor.first) | _pair("hada_w2", "hada_t2", factor.second)
            return parts | _alpha(factor.alpha, factor.first.down)
        case Kronecker():
            parts = _matrix("lokr_w1", "", factor.a) | _matrix("lokr_w2", "lokr_t2", factor.b)
            return parts | _alpha(factor.alpha, next(iter(parts.values())))
        case Full():
            return {"w_norm" if factor.difference.dim() == 1 else "diff": factor.difference}
        case Rotation():
            return {"oft_blocks": factor.blocks} | _alpha(factor.alpha or 0.0, factor.blocks)
        case Dora():
            return kohya_parts(factor.inner) | {"dora_scale": _dora_scale(factor)}
    raise TypeError(factor)


def peft_tensors(factors: Mapping[str, Factor], prefix: str, magnitude_key: str = "lora_magnitude_vector") -> Tensors:
    """Tensors of LoRA and DoRA by PEFT's keys; `factors` by path within one component."""
    made: Tensors = {}
    for path, factor in factors.items():
        pair, magnitude = (factor.inner, factor.magnitude) if isinstance(factor, Dora) else (factor, None)
        assert isinstance(pair, LowRank)
        made |= {f"{prefix}{path}.lora_A.weight": pair.down, f"{prefix}{path}.lora_B.weight": pair.up}
        if magnitude is not None:
            shape = (1, -1, 1, 1) if pair.down.dim() == 4 else (-1,)
            made[f"{prefix}{path}.{magnitude_key}"] = magnitude.reshape(shape)
    return made


def word_tensors(embeddings: Mapping[str, Mapping[str, Tensor]]) -> Tensors:
    """New words beside a LoRA in diffusers' layout: it refuses a file with keys that do not say "lora", and passes over
    those that name no part of its pipelines."""
    return {
        f"{WORD_PREFIX}{token}.{tower}": rows for token, towers in embeddings.items() for tower, rows in towers.items()
    }


def peft_settings(factors: Mapping[str, Factor], anchored: bool) -> dict[str, Any]:
    """PEFT's LoraConfig of these layers of one component: the usual rank and alpha, and patterns for the others.

    `anchored` makes each pattern match a whole path; else it may have something in front, as text encoders' have in
    some releases of transformers.
    """
    pairs = {path: factor.inner if isinstance(factor, Dora) else factor for path, factor in factors.items()}
    plain = {path: pair for path, pair in pairs.items() if isinstance(pair, LowRank)}
    stable = all(pair.rank_stabilised and pair.alpha is not None for pair in plain.values())
    ranks = {path: pair.rank for path, pair in plain.items()}
    alphas = {path: _alpha_of(pair, stable) for path, pair in plain.items()}
    rank, alpha = _usual(ranks), _usual(alphas)
    start = "^" if anchored else ""
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"{start}{path}": value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {f"{start}{path}": value for path, value in alphas.items() if value != alpha},
        "target_modules": list(plain),
        "use_rslora": stable,
        "use_dora": any(isinstance(factor, Dora) for factor in factors.values()),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def plain_alpha(factor: LowRank) -> float:
    """The alpha that stands for the factor's scale where a reader divides it by the rank."""
    if factor.alpha is None:
        return float(factor.rank)
    return factor.alpha * sqrt(factor.rank) if factor.rank_stabilised else factor.alpha


def _alpha_of(pair: LowRank, stable: bool) -> float:
    alpha = pair.alpha if stable else None
    value = plain_alpha(pair) if alpha is None else alpha
    return int(value) if value.is_integer() else value


def _usual(values: Mapping[str, float]) -> float:
    return Counter(values.values()).most_common(1)[0][0]


def _kohya_name(layer: str, sgm: bool, numbered: bool) -> str:
    component, _, path = layer.partition(".")
    if component != "unet":
        number = {"text_encoder": "1" if numbered else "", "text_encoder_2": "2"}[component]
        return f"lora_te{number}_{path.replace('.', '_')}"
    if not sgm:
        return f"lora_unet_{path.replace('.', '_')}"
    name = _sgm_name(path)
    if name is None:
        raise UsageError(f"{layer} has no name among Stability's for SDXL.", "Choose another format: diffusers.")
    return f"lora_unet_{name}"


def _sgm_name(path: str) -> str | None:
    """None for a layer that SDXL does not have, whose name would be another layer's."""
    try:
        name = to_sgm(path)
    except (KeyError, ValueError, IndexError):
        return None
    return name if from_sgm(name) == path else None


def _with_alpha(factor: Factor) -> Factor:
    """The same change, with an alpha where it states none."""
    match factor:
        case LowRank(alpha=None):
            return replace(factor, alpha=float(factor.rank), rank_stabilised=False)
        case Hadamard(alpha=None) | Kronecker(alpha=None):
            return replace(factor, alpha=float(factor.rank or 1))
        case Dora():
            return replace(factor, inner=_with_alpha(factor.inner))
    return factor


def _alpha(value: float | None, like: Tensor) -> Tensors:
    """A scalar in the dtype of the layer where that holds it exactly, as trainers save it; else float32."""
    if value is None:
        return {}
    same = torch.tensor(value, dtype=like.dtype)
    return {"alpha": same if float(same) == value else torch.tensor(value)}


def _pair(start: str, mid: str, pair: LowRank) -> Tensors:
    """LyCORIS's own low-rank matrix; with a core its first part is stored transposed."""
    if pair.mid is None:
        return {f"{start}_a": pair.up, f"{start}_b": pair.down}
    return {f"{start}_a": pair.up.T, f"{start}_b": pair.down, mid: pair.mid}


def _matrix(start: str, mid: str, matrix: Tensor | LowRank) -> Tensors:
    return {start: matrix} if isinstance(matrix, Tensor) else _pair(start, mid, matrix)


def _dora_scale(factor: Dora) -> Tensor:
    """One magnitude an output [out, 1, ...], as kohya's reader expects it, or one an input [1, in, ...] as it came."""
    magnitude = factor.magnitude
    if factor.per_input or (magnitude.dim() > 1 and magnitude.shape[0] == magnitude.numel()):
        return magnitude
    kernel = isinstance(factor.inner, LowRank) and factor.inner.down.dim() == 4
    return magnitude.reshape(-1, 1, 1, 1) if kernel else magnitude.reshape(-1, 1)
