"""k adapters on one base at once: stacked by layer, and gated by data in every forward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import frexp
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from studio.adapters import Adapter
from studio.attaching import merge, teach_words
from studio.errors import StudioError
from studio.factor_checks import shape_of
from studio.factors import Kronecker, LowRank, low_rank_form
from studio.gates import Gate
from studio.kernels.kronecker import kronecker_conv, kronecker_linear
from studio.kernels.multi_adapter import Factors, Weights, multi_adapter
from studio.kernels.multi_adapter_conv import Geometry, multi_adapter_conv
from studio.models import BaseModel
from studio.placing import Change, Placed, Receipt, place, receipt_of

Tensor = torch.Tensor
_Other = Callable[[Tensor, Tensor], Tensor]  # (input, the base's output) -> the change of the output
_READS_TEXT = ("attn2.to_k", "attn2.to_v")


@dataclass
class _Layer:
    """What the adapters do to one layer; `columns` are those of the bank that act on it, in the order of `low`."""

    name: str
    module: nn.Module
    stream: str
    columns: list[int] = field(default_factory=list)
    low: Factors | None = None
    others: list[tuple[int, _Other]] = field(default_factory=list)


class AdapterBank:
    """Adapters installed side by side on `base`; who acts where is the gate of each forward.

    Inside `installed()` the layers add what the gate lets through, `gate` being set by `use`; without one, or with all
    weights zero, the base computes bit for bit what it computes alone. Inside `merged()` one weight an adapter is added
    to the base's own weights instead: nothing is paid in the forward. Either way nothing is left behind.
    """

    def __init__(self, base: BaseModel, adapters: Sequence[Adapter]) -> None:
        self.base = base
        self.placed: list[Placed] = [place(base, replace(one, factors=dict(one.factors))) for one in adapters]
        self.gate: Gate | None = None
        self._layers: list[_Layer] | None = None

    @property
    def count(self) -> int:
        """k."""
        return len(self.placed)

    def receipts(self, strengths: Sequence[float]) -> list[Receipt]:
        """What each adapter does to the base at its strength."""
        with torch.no_grad():
            return [receipt_of(one, self.base, s) for one, s in zip(self.placed, strengths, strict=True)]

    @contextmanager
    def use(self, gate: Gate) -> Iterator[None]:
        """Let `gate` decide in every forward of the block; the one before comes back at the end."""
        before, self.gate = self.gate, gate
        try:
            yield
        finally:
            self.gate = before

    @contextmanager
    def installed(self) -> Iterator["AdapterBank"]:
        """Hook the layers, and teach the base the adapters' words, while the block runs."""
        if self._layers is None:
            self._layers = _stack(self.placed, self.base.device)
        with ExitStack() as undo:
            for layer in self._layers:
                undo.callback(layer.module.register_forward_hook(self._hook(layer)).remove)
            for one in self.placed:
                teach_words(self.base, one.adapter, undo)
            yield self

    @contextmanager
    def merged(self, strengths: Sequence[float]) -> Iterator[None]:
        """Add every adapter times its strength to the base's weights while the block runs."""
        with ExitStack() as undo, torch.no_grad():
            merge(list(zip(self.placed, strengths, strict=True)), undo)
            for one in self.placed:
                teach_words(self.base, one.adapter, undo)
            with torch.enable_grad():
                yield

    def _hook(self, layer: _Layer) -> Callable[..., Tensor | None]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self.gate is None or not self.gate.reaches(layer.name):
                return None
            return _add(layer, args[0], output, self.gate)

        return add


def _add(layer: _Layer, x: Tensor, output: Tensor, gate: Gate) -> Tensor:
    """`output` [B, ..., out] with what the gate lets through added."""
    if len(x) != gate.samples:
        raise StudioError(
            f"The gate is for {gate.samples} samples; a layer got {len(x)}.", "Make a gate for the batch."
        )
    if not torch.is_grad_enabled() and gate.acting < len(x):  # the rest of the batch is the base alone
        some = gate.acting
        _add(layer, x[:some], output[:some], gate.first(some))  # in place
        return output
    image = output.dim() == 4  # [B, out, h, w]; else [B, N, out] or [B, out]
    parts: list[Tensor] = []
    if layer.low is not None:
        chosen = gate.of(layer.columns)
        if chosen.active:
            factors, chosen = layer.low.only(chosen.active), chosen.of(chosen.active)
            if image:
                parts.append(_convolved(layer.module, factors, x, output, chosen))
            else:
                parts.append(_low_rank(layer, factors, x, output, chosen))
    for column, change in layer.others:
        weights = _weights(layer, output, gate.of([column]))
        if bool(weights.dense.any()):
            share = weights.dense.view(len(x), *output.shape[2:], 1).movedim(3, 1) if image else weights.dense
            moved = change(x, output)
            parts.append(share * (moved if image else moved.reshape(len(share), -1)))
    for part in parts:
        part = part.view(output.shape)
        output = output + part if torch.is_grad_enabled() else output.add_(part)
    return output


def _weights(layer: _Layer, output: Tensor, gate: Gate) -> Weights:
    if output.dim() == 4:
        return gate.on_grid(*output.shape[2:])
    if output.dim() == 2:
        return gate.on_samples()
    tokens = output.shape[1]
    if layer.stream == "image":
        return gate.on_tokens(tokens)
    return gate.on_text(tokens) if layer.stream == "text" else gate.everywhere(tokens)


def _low_rank(layer: _Layer, factors: Factors, x: Tensor, output: Tensor, gate: Gate) -> Tensor:
    return multi_adapter(x.reshape(-1, x.shape[-1]), factors, _weights(layer, output, gate))


def _convolved(module: Any, factors: Factors, x: Tensor, output: Tensor, gate: Gate) -> Tensor:
    geometry = Geometry(module.kernel_size, module.stride, module.padding, module.dilation)
    return multi_adapter_conv(x, factors, gate.windows(*output.shape[2:]), geometry)


def _stack(placed: Sequence[Placed], device: torch.device) -> list[_Layer]:
    """The layers that any adapter changes, their low-rank factors stacked on the device that computes: offloaded
    weights lie elsewhere between forwards. What a stack holds is let go of, layer by layer."""
    layers: dict[nn.Module, _Layer] = {}
    pairs: dict[nn.Module, list[tuple[int, int]]] = {}
    for column, one in enumerate(placed):
        for at, change in enumerate(one.changes):
            layer = layers.setdefault(change.module, _Layer(change.layer, change.module, _stream(change.layer)))
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


def _other(change: Change, device: torch.device) -> _Other:
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
