"""k adapters on one base at once: stacked by layer, and gated by data in every forward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn

from studio.adapters import Adapter, load_concept
from studio.attaching import merge, teach_words
from studio.bank_layers import Addition, Layer, groups, stack
from studio.concepts import Concept
from studio.errors import StudioError
from studio.extended import Member, extend
from studio.gates import Gate
from studio.kernels.multi_adapter import Factors, Weights
from studio.kernels.multi_adapter_conv import Geometry, multi_adapter_conv
from studio.models import BaseModel
from studio.placing import Placed, Receipt, place, receipt_of
from studio.sharing import firsts, owners_of, shared_strengths

Tensor = torch.Tensor
Told = TypeVar("Told")
Act = Callable[[Tensor, Tensor, Gate], Tensor]  # (input, the layer's output, who acts) -> it with the change


class AdapterBank:
    """Adapters installed side by side on `base`; who acts where is the gate of each forward.

    Inside `installed()` the layers add what the gate lets through, `gate` being set by `use`; without one, or with all
    weights zero, the base computes bit for bit what it computes alone; where the bank `extends`, as on CUDA, linear
    layers that no offloading moves multiply with their adapters in one product, and this holds to rounding. Inside
    `merged()` one weight an adapter is added to the base's own weights instead: nothing is paid in the forward. Nothing
    is left behind. Adapters that are the same, as those of concepts learned together, are one that acts as the
    strongest of them does.
    """

    def __init__(self, base: BaseModel, adapters: Sequence[Adapter], extends: bool | None = None) -> None:
        self.base = base
        self._extends = base.device.type == "cuda" if extends is None else extends
        self._names, self._owners = [one.name for one in adapters], owners_of(adapters)
        distinct = [adapters[n] for n in firsts(self._owners)]
        self.placed: list[Placed] = [place(base, replace(one, factors=dict(one.factors))) for one in distinct]
        self.gate: Gate | None = None
        self._layers: list[Layer] | None = None
        self._plans: dict[Any, dict[Any, Act]] = {}  # by a gate's pattern, then by layer and shapes
        self._acts: dict[Any, Act] = {}  # those of the gate
        self._installed = False

    @classmethod
    def of(
        cls, base: BaseModel, concepts: Sequence[Concept], load: Callable[[Concept], Adapter] = load_concept
    ) -> "AdapterBank":
        """The adapters of `concepts`, as `load` gives them."""
        return cls(base, [load(one) for one in concepts])

    @property
    def count(self) -> int:
        """k."""
        return len(self._owners)

    @property
    def adapters(self) -> list[Adapter]:
        """All k, those that are the same as often as they were given."""
        return [self.placed[owner].adapter for owner in self._owners]

    @property
    def hooked(self) -> list[Layer]:
        """The layers that it changes now, which are none but inside `installed()`."""
        return (self._layers or []) if self._installed else []

    def shares(self, other: "AdapterBank") -> bool:
        """Whether an adapter of it is one of `other` too."""
        both = [*self.adapters, *other.adapters]
        return len(firsts(owners_of(both))) < len(self.placed) + len(other.placed)

    def receipts(self, strengths: Sequence[float]) -> list[Receipt]:
        """What each adapter does to the base at its strength."""
        with torch.no_grad():
            return [
                replace(receipt_of(self.placed[owner], self.base, s), adapter=name)
                for name, owner, s in zip(self._names, self._owners, strengths, strict=True)
            ]

    @contextmanager
    def use(self, gate: Gate) -> Iterator[None]:
        """Let `gate` decide in every forward of the block; the one before comes back at the end."""
        told = gate if len(self.placed) == self.count else gate.shared(self._owners)
        before = self.gate, self._acts
        self.gate, self._acts = told, self._plans.setdefault(told.pattern, {})
        try:
            yield
        finally:
            self.gate, self._acts = before

    @contextmanager
    def installed(self) -> Iterator["AdapterBank"]:
        """Hook the layers, and teach the base the adapters' words, while the block runs."""
        if self._layers is None:
            self._layers = stack(self.placed, self.base.device)
        with ExitStack() as undo:
            for group in groups(self._layers) if self._extends and not _is_moved(self.base) else ():
                self._extend(group, undo)
            for layer in self._layers:
                undo.callback(layer.module.register_forward_hook(self._hook(layer)).remove)
            for one in self.placed:
                teach_words(self.base, one.adapter, undo)
            self._installed = True
            undo.callback(setattr, self, "_installed", False)
            undo.callback(self._plans.clear)
            yield self

    @contextmanager
    def merged(self, strengths: Sequence[float]) -> Iterator[None]:
        """Add every adapter times its strength to the base's weights while the block runs."""
        with ExitStack() as undo, torch.no_grad():
            merge(list(zip(self.placed, shared_strengths(strengths, self._owners), strict=True)), undo)
            for one in self.placed:
                teach_words(self.base, one.adapter, undo)
            with torch.enable_grad():
                yield

    def _extend(self, group: list[Layer], undo: ExitStack) -> None:
        members: list[Member] = []
        for layer in group:
            assert layer.low is not None
            if "forward" in vars(layer.module):
                raise StudioError(
                    f"Another bank computes the layer {layer.name} already.",
                    "Take it off before, or put all in one.",
                )
            members.append(Member(cast(nn.Linear, layer.module), layer.low, partial(self._shares, layer)))
            layer.extended = True
            undo.callback(setattr, layer, "extended", False)
        extend(members, undo)

    def _shares(self, layer: Layer, x: Tensor) -> Tensor | None:
        gate = self.gate
        if gate is None or not gate.reaches(layer.name):
            return None
        _check_batch(x, gate)
        return _weights(layer, x.shape[1:-1], gate.of(layer.columns)).dense

    def _hook(self, layer: Layer) -> Callable[..., Tensor | None]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            gate = self.gate
            if gate is None:
                return None
            known = (layer, args[0].shape, output.shape, torch.is_grad_enabled())
            if (act := self._acts.get(known)) is None:
                act = self._acts[known] = _planned(layer, args[0], output, gate)
            return act(args[0], output, gate)

        return add


def _is_moved(base: BaseModel) -> bool:
    """Whether offloading moves weights of `base` about: it hooks whole networks, and widened weights would stay."""
    return any(hasattr(part, "_hf_hook") for part in (base.unet, *base.text_encoders))


def _planned(layer: Layer, x: Tensor, output: Tensor, gate: Gate) -> Act:
    """What adds to `output` [B, ..., out] what a gate lets through, for inputs of this shape and gates of this pattern:
    all that does not depend on their numbers is done here, once."""
    _check_batch(x, gate)
    if not gate.reaches(layer.name):
        return lambda x, output, gate: output
    some = len(x) if torch.is_grad_enabled() else gate.acting
    parts = _parts(layer, output[:some], gate.active)

    def act(x: Tensor, output: Tensor, gate: Gate) -> Tensor:
        for part in parts:
            output = part(x, output, gate)
        return output

    if some == len(x):
        return act

    def act_on_some(x: Tensor, output: Tensor, gate: Gate) -> Tensor:  # the rest of the batch is the base alone
        act(x[:some], output[:some], gate)  # in place
        return output

    return act_on_some


def _check_batch(x: Tensor, gate: Gate) -> None:
    if len(x) != gate.samples:
        raise StudioError(
            f"The gate is for {gate.samples} samples; a layer got {len(x)}.", "Make a gate for the batch."
        )


def _parts(layer: Layer, output: Tensor, active: Sequence[int]) -> list[Act]:
    image = output.dim() == 4  # [B, out, h, w]; else [B, N, out] or [B, out]
    parts: list[Act] = []
    if layer.low is not None and not layer.extended:
        chosen = [n for n, column in enumerate(layer.columns) if column in active]
        if chosen:
            factors, columns = layer.low.only(chosen), tuple(layer.columns[n] for n in chosen)
            part = _convolved(layer.module, factors, output, columns) if image else None
            parts.append(part or _multiplied(factors, _asked(layer, output, columns)))
    parts += [_weighed(change, _asked(layer, output, (column,))) for column, change in layer.others if column in active]
    return parts


def _multiplied(factors: Factors, ask: Callable[[Gate], Weights]) -> Act:
    def part(x: Tensor, output: Tensor, gate: Gate) -> Tensor:
        weights = ask(gate)
        rows = output.view(-1, output.shape[-1])
        return weights.cheapest(x.reshape(-1, x.shape[-1]), rows, factors, weights).view(output.shape)

    return part


def _convolved(module: Any, factors: Factors, output: Tensor, columns: tuple[int, ...]) -> Act:
    geometry = Geometry(module.kernel_size, module.stride, module.padding, module.dilation)
    samples, _, *grid = output.shape
    ask = _asked_once(("windows", samples, columns, *grid), lambda gate: gate.of(columns, samples).windows(*grid))

    def part(x: Tensor, output: Tensor, gate: Gate) -> Tensor:
        return _sum(output, multi_adapter_conv(x, factors, ask(gate), geometry))

    return part


def _weighed(change: Addition, ask: Callable[[Gate], Weights]) -> Act:
    def part(x: Tensor, output: Tensor, gate: Gate) -> Tensor:
        weights = ask(gate)
        if weights.silent:
            return output
        moved = change(x, output)
        if output.dim() == 4:
            return _sum(output, weights.dense.view(len(x), *output.shape[2:], 1).movedim(3, 1) * moved)
        return _sum(output, weights.dense * moved.reshape(len(weights.dense), -1))

    return part


def _sum(output: Tensor, part: Tensor) -> Tensor:
    part = part.view(output.shape)
    return output + part if torch.is_grad_enabled() else output.add_(part)


def _asked(layer: Layer, output: Tensor, columns: tuple[int, ...]) -> Callable[[Gate], Weights]:
    samples, inner = len(output), output.shape[2:] if output.dim() == 4 else output.shape[1:-1]
    known = (layer.stream, samples, columns, *inner)
    return _asked_once(known, lambda gate: _weights(layer, inner, gate.of(columns, samples)))


def _asked_once(question: tuple[Any, ...], make: Callable[[Gate], Told]) -> Callable[[Gate], Told]:
    """Asks each gate once, for all layers with the same question."""

    def ask(gate: Gate) -> Told:
        if (told := gate.told.get(question)) is None:
            told = gate.told[question] = make(gate)
        return told

    return ask


def _weights(layer: Layer, inner: Sequence[int], gate: Gate) -> Weights:
    """For a layer whose output has the `inner` sizes between samples and channels."""
    if len(inner) == 2:
        return gate.on_grid(*inner)
    if not inner:
        return gate.on_samples()
    if layer.stream == "image":
        return gate.on_tokens(*inner)
    return gate.on_text(*inner) if layer.stream == "text" else gate.everywhere(*inner)
