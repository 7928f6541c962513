"""Where the changes of an adapter land on a base, and the receipt for it."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import median_low
from typing import Any

import torch

from studio.adapter_parts import PER_LAYER
from studio.adapters import Adapter, check_family, check_values
from studio.errors import UsageError
from studio.factor_checks import fits, shape_of
from studio.factors import Factor, LowRank, fitted
from studio.models import BaseModel
from studio.untrusted import shown

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
Tensor = torch.Tensor


@dataclass(frozen=True)
class Receipt:
    """What an adapter did to a base: layers by component that `matched`, that the base lacks (`unmatched`), and that
    the base has beside them under the same names but the file leaves alone (`missing`).

    `effect` is the median over matched layers of |change x| / |weight x| for a random input x, at `strength`;
    `words` are the tokens of embeddings that came along; `unread` the keys of the file that nothing explains, and words
    with a row for each layer, which the studio does not apply.
    """

    adapter: str
    family: str | None
    base: str
    base_family: str
    strength: float
    matched: dict[str, int]
    unmatched: dict[str, tuple[str, ...]]
    missing: dict[str, int]
    unread: tuple[str, ...]
    words: tuple[str, ...]
    effect: float

    def warning(self) -> str | None:
        """One sentence where something of the file has no effect: counts, and three examples; else None."""
        lost = [layer for layers in self.unmatched.values() for layer in layers] + list(self.unread)
        if not lost:
            return None
        total = sum(self.matched.values())
        return (
            f"{self.adapter}: {total} layers take effect; {len(lost)} entries of the file do not fit the base"
            f" {self.base!r} and have none, e.g. {', '.join(shown(one) for one in lost[:3])}."
        )


@dataclass(frozen=True)
class Change:
    """A parameter of the base, and what to add to it at strength 1."""

    layer: str
    module: torch.nn.Module
    parameter: torch.nn.Parameter
    factor: Factor | None
    bias: Tensor | None

    def amount(self) -> Tensor:
        """The change in float32, in the parameter's shape and on its device."""
        if self.factor is None:
            assert self.bias is not None
            return fitted(self.bias.float(), self.parameter)
        return fitted(self.factor.delta(self.parameter.data), self.parameter)


@dataclass(frozen=True)
class Placed:
    """An adapter on a base: its changes, and the layers that the base lacks or has in another shape."""

    adapter: Adapter
    changes: list[Change]
    unmatched: list[str]

    @cached_property
    def effect(self) -> float:
        """The median over layers of |change x| / |weight x|, x a random direction, at strength 1."""
        moving = [one for one in self.changes if one.factor is not None and one.parameter.dim() > 1]
        if not moving:
            return 0.0
        moved, whole = (torch._foreach_norm(several) for several in zip(*map(_probe, moving), strict=True))
        ratios = [float(a) / max(float(b), 1e-12) for a, b in zip(moved, whole, strict=True)]
        return median_low(ratios)


def place(base: BaseModel, adapter: Adapter) -> Placed:
    """Find what `adapter` changes in `base`; nothing is changed yet.

    Raises UsageError for an adapter of another family and for one of which nothing fits, StudioError for content that
    cannot be used.
    """
    check_family(adapter, base.family, base.source.name)
    check_values(adapter)
    changes: list[Change] = []
    unmatched: list[str] = []
    for layer in adapter.layers:
        module: Any = layer_of(base, layer)
        factor, bias = adapter.factors.get(layer), adapter.biases.get(layer)
        if module is None or (factor is not None and not fits(factor, module.weight)):
            unmatched.append(layer)
            continue
        if factor is not None:
            changes.append(Change(layer, module, module.weight, factor, None))
        if bias is not None and module.bias is not None and bias.shape == module.bias.shape:
            changes.append(Change(layer, module, module.bias, None, bias))
        elif bias is not None:
            unmatched.append(f"{layer}.bias")
    placed = Placed(adapter, changes, unmatched)
    _refuse_unmatched(placed, base)
    return placed


def layer_of(base: BaseModel, layer: str) -> torch.nn.Module | None:
    """The module that "component.path" names in `base`; None where there is none.

    Text encoders carry "text_model." in some releases of transformers and not in others.
    """
    component, _, path = layer.partition(".")
    root = getattr(base.pipe, component, None) if component in COMPONENTS else None
    for name in (path, path.removeprefix("text_model.")):
        try:
            found = None if root is None else root.get_submodule(name)
        except AttributeError:
            continue
        if found is not None and getattr(found, "weight", None) is not None:
            return found
    return None


def _refuse_unmatched(placed: Placed, base: BaseModel) -> None:
    adapter, changes, unmatched = placed.adapter, placed.changes, placed.unmatched
    if changes or (adapter.embeddings and not unmatched):
        return
    examples = [*unmatched, *adapter.unread][:3]
    found = layer_of(base, examples[0]) if examples and examples[0] in adapter.factors else None
    why = f"has {list(found.weight.shape)} there" if found is not None else "has no such layer"  # pyright: ignore
    size = "" if found is None else " of " + " x ".join(map(str, shape_of(adapter.factors[examples[0]])))
    raise UsageError(
        f"{adapter.name} does not fit the base {base.source.name!r}: none of its {len(adapter.layers)} layers is there."
        f" It changes {', '.join(map(shown, examples))}{size}, and the base {why}.",
        "Give the base that the adapter was made for with --base.",
    )


def receipt_of(placed: Placed, base: BaseModel, strength: float) -> Receipt:
    """The receipt of an adapter that acts on `base` with `strength`."""
    adapter, unmatched = placed.adapter, placed.unmatched
    reached = {change.layer for change in placed.changes}
    words = tuple(token for token, towers in adapter.embeddings.items() if set(towers) != {PER_LAYER})
    matched = Counter(layer.partition(".")[0] for layer in reached)
    scattered = tuple(f"the word {token} (a row for each layer)" for token in adapter.embeddings if token not in words)
    by_component: dict[str, tuple[str, ...]] = {}
    for layer in unmatched:
        component = layer.partition(".")[0]
        by_component[component] = (*by_component.get(component, ()), layer)
    return Receipt(
        adapter.name, adapter.family, base.source.name, base.family, strength, dict(matched), by_component,
        _missing(base, reached), (*adapter.unread, *scattered), words, abs(strength) * placed.effect,
    )  # fmt: skip


def _probe(change: Change) -> tuple[Tensor, Tensor]:
    weight, factor = change.parameter.data.float().flatten(1), change.factor
    x = _direction(weight.shape[1]).to(weight.device)
    if isinstance(factor, LowRank) and factor.mid is None:  # the same without the product of the two
        moved = factor.scale * (factor.up.to(x).flatten(1) @ (factor.down.to(x).flatten(1) @ x))
    else:
        moved = change.amount().flatten(1) @ x
    return moved, weight @ x


@lru_cache(maxsize=64)
def _direction(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def _missing(base: BaseModel, reached: set[str]) -> dict[str, int]:
    """Layers named like the changed ones, e.g. all `to_q` of the UNet, that are not changed."""
    counts: dict[str, int] = {}
    for component in {layer.partition(".")[0] for layer in reached}:
        mine = [layer.partition(".")[2] for layer in reached if layer.startswith(f"{component}.")]
        endings = tuple({f".{_ending(path)}" for path in mine})
        there = [name for name, part in getattr(base.pipe, component).named_modules() if hasattr(part, "weight")]
        counts[component] = sum(f".{name}".endswith(endings) for name in there) - len(mine)
    return {component: count for component, count in counts.items() if count > 0}


def _ending(path: str) -> str:
    """The last name of `path`, and the one before where that is a number: "to_q", "to_out.0"."""
    names = path.split(".")
    return ".".join(names[-2:] if names[-1].isdigit() else names[-1:])
