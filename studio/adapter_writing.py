"""Adapters written as the files that other tools read, and read back before they take their final name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from studio.adapter_parts import COMPONENT_KEY
from studio.adapter_settings import METADATA_KEY
from studio.adapter_targets import Target, expressed
from studio.adapter_tensors import kohya_tensors, peft_settings, peft_tensors, word_tensors
from studio.adapters import PEFT_CONFIG, PEFT_WEIGHTS, Adapter, load_adapter
from studio.errors import StudioError
from studio.factors import Dora, Factor, Full, LowRank, Relative
from studio.home import write_atomic, write_folder
from studio.rotation import Rotation
from studio.tensorfile import order_metadata

# Relative errors of a change that may come with the precision: three rounded factors, and the norm of their products.
_TOLERANCES = {torch.float32: 1e-6, torch.float16: 4e-3}
Tensor = torch.Tensor
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Written:
    """What a file holds: its layers, and the largest relative error of a change against the source's.

    `approximated` are the relative errors of those that an SVD made, by layer.
    """

    path: Path
    layers: int
    error: float
    approximated: dict[str, float]


def write_adapter(adapter: Adapter, path: Path, to: Target, *, half: bool = False, rank: int | None = None) -> Written:
    """Write `adapter` to `path`, for "peft" a folder, with one sub-folder a component where it has several.

    `half` rounds to float16. `rank` lets an SVD of that rank stand for kinds that the target cannot hold. Raises
    UsageError for what it cannot hold, StudioError where what is read back differs; `path` then stays as it was.
    """
    made = expressed(adapter, to, rank)
    dtype = torch.float16 if half else None
    errors: list[float] = []

    def check(draft: Path) -> None:
        errors.append(_largest_error(adapter, made.factors, load_adapter(draft), torch.float16 if half else None))

    if to == "peft":
        write_folder(path, lambda draft: (_save_peft(draft, adapter, made.factors, dtype), check(draft)))
    else:
        tensors, extra = _flat(adapter, made.factors, to)
        metadata = _kept(adapter.metadata) | extra
        write_atomic(path, lambda draft: (_save(draft, tensors, metadata, dtype), check(draft)))
    return Written(path, len(adapter.layers), max(*errors, *made.errors.values(), 0.0), made.errors)


def _flat(adapter: Adapter, factors: Mapping[str, Factor], to: Target) -> tuple[Tensors, dict[str, str]]:
    """(tensors, metadata of its own) of a single file."""
    if to != "diffusers":
        return kohya_tensors(adapter, factors, lycoris=to == "lycoris"), {}
    tensors: Tensors = {}
    settings: dict[str, Any] = {}
    for component, inner in _by_component(factors).items():
        anchored = not component.startswith("text_encoder")
        # diffusers hands text encoders to transformers, which drops PEFT's own key of magnitudes with a log line
        magnitude = "lora_magnitude_vector" if anchored else "lora_magnitude_vector.weight"
        tensors |= peft_tensors(inner, f"{component}.", magnitude)
        own = {path if anchored else path.removeprefix("text_model."): factor for path, factor in inner.items()}
        settings |= {f"{component}.{key}": value for key, value in peft_settings(own, anchored).items()}
    tensors |= word_tensors(adapter.embeddings)
    return tensors, {METADATA_KEY: json.dumps(settings, indent=2)}


def _save_peft(folder: Path, adapter: Adapter, factors: Mapping[str, Factor], dtype: torch.dtype | None) -> None:
    parts = _by_component(factors)
    for component, inner in parts.items():
        into = folder / component if len(parts) > 1 else folder
        into.mkdir(parents=True, exist_ok=True)
        if component == "text_encoder":  # whose class has no such level in the transformers of today
            inner = {path.removeprefix("text_model."): factor for path, factor in inner.items()}
        metadata = _kept(adapter.metadata) | {COMPONENT_KEY: component}
        _save(into / PEFT_WEIGHTS, peft_tensors(inner, "base_model.model."), metadata, dtype)
        settings = peft_settings(inner, anchored=True) | {"base_model_name_or_path": None, "task_type": None}
        (into / PEFT_CONFIG).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _by_component(factors: Mapping[str, Factor]) -> dict[str, dict[str, Factor]]:
    parts: dict[str, dict[str, Factor]] = {}
    for layer, factor in factors.items():
        component, _, path = layer.partition(".")
        parts.setdefault(component, {})[path] = factor
    return parts


def _kept(metadata: Mapping[str, str]) -> dict[str, str]:
    """The source's metadata but for what described its tensors."""
    return {"format": "pt"} | {k: v for k, v in metadata.items() if k not in (METADATA_KEY, COMPONENT_KEY)}


def _save(path: Path, tensors: Tensors, metadata: dict[str, str], dtype: torch.dtype | None) -> None:
    """Alphas keep their own precision; factors that shared memory become tensors of their own."""
    rounded = {
        key: tensor.detach().to(dtype if dtype and tensor.dim() else tensor.dtype, copy=True).contiguous()
        for key, tensor in tensors.items()
    }
    save_file(rounded, path, metadata)
    order_metadata(path)


def _largest_error(adapter: Adapter, factors: Mapping[str, Factor], found: Adapter, dtype: torch.dtype | None) -> float:
    """The largest relative error of what was read back; raises StudioError where it is more than rounding."""
    wanted = _pieces(adapter, factors)
    got = _pieces(found, found.factors)
    if wanted.keys() != got.keys() or found.unread:
        lost = sorted(wanted.keys() ^ got.keys()) or list(found.unread)
        raise StudioError(f"{adapter.name} reads back otherwise than it was written: {lost[0]}.", _TELL)
    errors = {name: _difference(one, got[name]) for name, one in wanted.items()}
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    if not errors[worst] <= _TOLERANCES[dtype or torch.float32]:
        raise StudioError(
            f"{adapter.name}: written so, {worst} would differ by {errors[worst]:.1e} of its change.",
            "Its values exceed what 16 bits hold: leave out --half." if dtype else _TELL,
        )
    return errors[worst]


_TELL = "This is a fault of the studio: please report it with the file."


def _pieces(adapter: Adapter, factors: Mapping[str, Factor]) -> dict[str, Factor]:
    """All that changes something, as factors."""
    biases = {f"{layer}.bias": Full(bias) for layer, bias in adapter.biases.items()}
    words = {f"{t} {tower}": Full(rows) for t, towers in adapter.embeddings.items() for tower, rows in towers.items()}
    return {**factors, **biases, **words}


def _difference(wanted: Factor, got: Factor) -> float:
    """The relative error of the change in the Frobenius norm; of DoRA that of its parts, as the base is not here."""
    if isinstance(wanted, Dora) and isinstance(got, Dora):
        if wanted.per_input != got.per_input:
            return float("inf")
        magnitudes = (Full(one.magnitude.reshape(-1, 1)) for one in (wanted, got))
        return max(_difference(wanted.inner, got.inner), _difference(*magnitudes))
    if isinstance(wanted, Rotation) and isinstance(got, Rotation):
        return _difference(Full(wanted.matrices()), Full(got.matrices()))
    if isinstance(wanted, Relative) or isinstance(got, Relative):
        return float("inf")
    if isinstance(wanted, LowRank) and isinstance(got, LowRank) and wanted.mid is None is got.mid:
        pairs = ((wanted.down, got.down), (wanted.up, got.up))
        same = all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)
        if same and wanted.scale == got.scale:  # the usual case, without forming the change of a large layer
            return 0.0
    truth, change = (one.reshape(len(one), -1) for one in (wanted.delta(), got.delta()))
    if truth.shape != change.shape:
        return float("inf")
    size = truth.norm()
    return float((change - truth).norm() / size) if size else float(change.norm())
