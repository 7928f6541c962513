"""How strongly an adapter changes each layer, and whether it brings in directions that the base does not have."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from studio.adapter_report import block_of, examples
from studio.adapters import Adapter
from studio.events import Emit, Phase, Step, silent
from studio.factors import Factor, Kronecker, LowRank, Relative, fitted, tensors_of

if TYPE_CHECKING:
    from studio.models import BaseModel

TOP, EPSILON = 10, 0.6
Tensor = torch.Tensor


def norm_of(factor: Factor) -> float:
    """The Frobenius norm of a change, not of a `Relative` one; low-rank pairs and Kronecker products are not formed."""
    match factor:
        case LowRank(mid=None):
            down, up = factor.down.double().flatten(1), factor.up.double().flatten(1)
            return abs(factor.scale) * float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())
        case Kronecker():
            a, b = factor.matrices()
            return abs(factor.scale) * float(a.double().norm() * b.double().norm())
    return float(factor.delta().double().norm())


def layer_norms(adapter: Adapter, base: "BaseModel | None" = None) -> dict[str, float]:
    """The norm of the change of every weight; that of a `Relative` one is known only where its layer is in `base`."""
    norms: dict[str, float] = {}
    for layer, factor in adapter.factors.items():
        if not isinstance(factor, Relative):
            norms[layer] = norm_of(factor)
        elif base is not None and (pair := _weight_and_change(base, layer, factor)) is not None:
            norms[layer] = float(pair[1].double().norm())
    return norms


def block_norms(norms: Mapping[str, float]) -> dict[str, float]:
    """The norm of each block's change as a whole."""
    squares: dict[str, float] = {}
    for layer, norm in norms.items():
        squares[block_of(layer)] = squares.get(block_of(layer), 0.0) + norm**2
    return {block: math.sqrt(square) for block, square in sorted(squares.items())}


def suspicious_values(adapter: Adapter, norms: Mapping[str, float]) -> list[str]:
    """What is wrong with the numbers themselves: not finite, or nothing but zeros."""
    said = []
    if broken := [layer for layer in adapter.layers if not _finite(_tensors(adapter, layer))]:
        said.append(f"{len(broken)} layers hold values that are not finite numbers, e.g. {examples(broken)}")
    if still := [layer for layer, norm in norms.items() if norm == 0]:
        said.append(f"{len(still)} layers change nothing, their change is zero, e.g. {examples(still)}")
    if unknown := [layer for layer in adapter.factors if layer not in norms]:
        said.append(
            f"{len(unknown)} layers are DoRA or OFT, whose change depends on the base: name one that has them with"
            " --base"
        )
    return said


def intruders(weight: Tensor, change: Tensor, top: int = TOP, epsilon: float = EPSILON) -> int:
    """The number of intruder dimensions that `change` brings into `weight`, both [out, in, ...].

    Of the `top` left singular vectors of weight + change, those whose |cosine| with every left singular vector of
    `weight` is below `epsilon` ("LoRA vs Full Fine-tuning: An Illusion of Equivalence", Shuttleworth et al. 2024).
    """
    before = weight.float().flatten(1)
    own, _, _ = torch.linalg.svd(before, full_matrices=False)
    new, _, _ = torch.linalg.svd(before + change.float().flatten(1), full_matrices=False)
    nearest = (own.T @ new[:, :top]).abs().amax(dim=0)
    return int((nearest < epsilon).sum())


def intruder_counts(adapter: Adapter, base: "BaseModel", emit: Emit = silent) -> dict[str, int]:
    """Intruder dimensions by layer, for every matrix or convolution of `base` that `adapter` changes."""
    counts: dict[str, int] = {}
    emit(Phase("Intruder dimensions", len(adapter.factors)))
    for n, (layer, factor) in enumerate(adapter.factors.items()):
        pair = _weight_and_change(base, layer, factor)
        if pair is not None and pair[0].dim() > 1 and pair[1].isfinite().all():
            counts[layer] = intruders(*pair)
        emit(Step(n + 1, len(adapter.factors)))
    return counts


def strangers(adapter: Adapter, base: "BaseModel") -> list[str]:
    """What is wrong between the two: layers that `base` lacks or has in another shape."""
    lost = [layer for layer, factor in adapter.factors.items() if _weight_and_change(base, layer, factor) is None]
    return [f"{len(lost)} layers do not fit the base, e.g. {examples(lost)}"] if lost else []


def block_sums(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by block instead of by layer."""
    sums: dict[str, int] = {}
    for layer, count in counts.items():
        sums[block_of(layer)] = sums.get(block_of(layer), 0) + count
    return dict(sorted(sums.items()))


def _weight_and_change(base: "BaseModel", layer: str, factor: Factor) -> tuple[Tensor, Tensor] | None:
    """The weight of `layer` and what happens to it, of one shape; None where the base has none that fits."""
    from studio.placing import layer_of  # with diffusers behind it, which takes seconds

    module: Any = layer_of(base, layer)
    if module is None:
        return None
    weight = module.weight.data.float()
    try:
        return weight, fitted(factor.delta(weight), weight)
    except (ValueError, RuntimeError):  # a factor for another shape
        return None


def _tensors(adapter: Adapter, layer: str) -> Iterable[Tensor]:
    if layer in adapter.biases:
        yield adapter.biases[layer]
    if layer in adapter.factors:
        yield from tensors_of(adapter.factors[layer])


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.float().isfinite().all()) for tensor in tensors)
