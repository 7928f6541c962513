"""What the adapters of a bank do to each layer: low-rank factors stacked, and whatever else as a function."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import frexp
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from studio.errors import StudioError
from studio.extended import MOST_ROWS, can_extend, rows_of
from studio.factor_checks import shape_of
from studio.factors import Kronecker, LowRank, low_rank_form
from studio.kernels.kronecker import kronecker_conv, kronecker_linear
from studio.kernels.multi_adapter import Factors
from studio.placing import Change, Placed

Tensor = torch.Tensor
Addition = Callable[[Tensor, Tensor], Tensor]  # (input, the layer's output) -> a change of it, or it with the change
_READS_TEXT = ("attn2.to_k", "attn2.to_v")


@dataclass(eq=False)
class Layer:
    """What the adapters do to one layer; `columns` are those of the bank that act on it, in the order of `low`."""

    name: str
    module: nn.Module
    stream: str
    columns: list[int] = field(default_factory=list)
    low: Factors | None = None
    others: list[tuple[int, Addition]] = field(default_factory=list)
    extended: bool = False


def stack(placed: Sequence[Placed], device: torch.device) -> list[Layer]:
    """The layers that any adapter changes, their low-rank factors stacked on the device that computes: offloaded
    weights lie elsewhere between forwards. What a stack holds is let go of, layer by layer."""
    layers: dict[nn.Module, Layer] = {}
    pairs: dict[nn.Module, list[tuple[int, int]]] = {}
    for column, one in enumerate(placed):
        for at, change in enumerate(one.changes):
            layer = layers.setdefault(change.module, Layer(change.layer, change.module, _stream(change.layer)))
            if isinstance(change.factor, LowRank) and isinstance(change.module, nn.Linear | nn.Conv2d):
                layer.columns.append(column)
                pairs.setdefault(change.module, []).append((column, at))
            else:
                layer.others.append((column, _other(change, device)))
    for module, several in pairs.items():
        low = _stacked_factors([placed[column].changes[at].factor for column, at in several], module, device)
        layers[module].low = low
        for n, (column, at) in enumerate(several):
            _let_go(placed[column], at, Factors(low.down[n], low.up[n]))
    return list(layers.values())


def groups(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers to extend: queries, keys and values of one self-attention together, where the same adapters act on all
    three and fit; the others alone."""
    fit = {
        one.name: (one, one.low.down.shape, rows_of(one.low))
        for one in layers
        if one.low is not None and can_extend(one.module) and rows_of(one.low) <= MOST_ROWS
    }
    for name in [name for name in fit if name.endswith("attn1.to_q")]:
        three = [fit.get(f"{name[:-1]}{part}") for part in "qkv"]
        found = [one for one in three if one is not None]
        alike = {(tuple(one.columns), shape) for one, shape, _ in found}
        if len(found) == 3 and len(alike) == 1 and 3 * found[0][2] <= MOST_ROWS:
            for one, _, _ in found:
                del fit[one.name]
            yield [one for one, _, _ in found]
    yield from ([one] for one, _, _ in fit.values())


def _let_go(one: Placed, at: int, held: Factors) -> None:
    """Read a pair from its stack, where that holds every bit of it (the scale is a power of two): else it would lie in
    memory twice."""
    change = one.changes[at]
    factor = change.factor
    assert isinstance(factor, LowRank)
    exact = frexp(abs(factor.scale))[0] == 0.5 and factor.mid is None
    if exact and factor.up.dtype == factor.down.dtype == held.down.dtype and factor.down.device == held.down.device:
        down, up = held.down[: factor.rank], held.up[: factor.rank].T
        view = LowRank(down.reshape(factor.down.shape), up.reshape(factor.up.shape))
        one.changes[at] = replace(change, factor=view)
        one.adapter.factors[change.layer] = view


def _stream(layer: str) -> str:
    if not layer.startswith("unet."):
        return "words"
    return "text" if layer.endswith(_READS_TEXT) else "image"


def _stacked_factors(factors: list[Any], module: nn.Module, device: torch.device) -> Factors:
    weight: Any = module.weight
    k, rank = len(factors), max(one.rank for one in factors)
    # Of a convolution with the channels last, as it is computed: else every forward would sort them anew.
    down = weight.new_zeros(k, rank, *weight.shape[2:], weight.shape[1], device=device).movedim(-1, 2)
    up = weight.new_zeros(k, rank, len(weight), device=device)
    for a, pair in enumerate(map(low_rank_form, factors)):
        assert pair is not None
        down[a, : pair.rank] = pair.down.reshape(pair.rank, *weight.shape[1:])
        up[a, : pair.rank] = pair.up.flatten(1).T
    return Factors(down, up)


def _other(change: Change, device: torch.device) -> Addition:
    """The change of the layer's output at weight 1, for what is no pair of matrices."""
    module: Any = change.module
    if change.factor is None:
        amount = change.amount().to(device, change.parameter.dtype)
        shape = (-1, 1, 1) if isinstance(module, nn.Conv2d | nn.GroupNorm) else (-1,)
        return lambda x, output: amount.reshape(shape).expand_as(output)
    if isinstance(change.factor, Kronecker) and shape_of(change.factor) == tuple(change.parameter.shape):
        a, b = (one.to(device, module.weight.dtype) for one in change.factor.matrices())
        scale, layout = change.factor.scale, change.factor.layout
        if isinstance(module, nn.Linear):
            return lambda x, output: scale * kronecker_linear(x, a, b, layout)
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            geometry = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            return lambda x, output: scale * kronecker_conv(x, a, b, layout, **geometry)
    amount = change.amount().to(device, change.parameter.dtype)
    match module:
        case nn.Linear():
            return lambda x, output: F.linear(x, amount)
        case nn.Conv2d():
            return lambda x, output: F.conv2d(
                x, amount, None, module.stride, module.padding, module.dilation, module.groups
            )
        case nn.LayerNorm():
            return lambda x, output: F.layer_norm(x, module.normalized_shape, amount, None, module.eps)
        case nn.GroupNorm():
            return lambda x, output: F.group_norm(x, module.num_groups, amount, None, module.eps)
    raise StudioError(
        f"{change.layer} is a {type(module).__name__}, on which adapters can only be merged.", "Use --method merge."
    )
