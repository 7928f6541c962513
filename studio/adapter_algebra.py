"""Adapters made of adapters: weighted sums, and smaller ranks.

All of it is exact arithmetic on factors: a sum of low-rank changes is the concatenation of their factors, and its
singular values follow from two QR decompositions and one small SVD, without the dense matrix (in float64).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Literal

import torch

from studio.adapter_clusters import clustered
from studio.adapter_family import FAMILY_KEY, NAMES
from studio.adapter_report import examples
from studio.adapter_settings import METADATA_KEY
from studio.adapter_targets import shaped
from studio.adapters import Adapter
from studio.errors import UsageError
from studio.factors import Factor, LowRank, Relative, low_rank_form

Method = Literal["sum", "svd", "lego"]
Tensor = torch.Tensor
_STALE_KEYS = (
    METADATA_KEY,
    "studio.rank",
    "studio.alpha",
    "ss_network_dim",
    "ss_network_alpha",
)  # after a change of rank


@dataclass(frozen=True)
class Pair:
    """A change up [out, r] @ down [r, in * kernel] of a layer whose inputs and kernel are `inputs`."""

    up: Tensor
    down: Tensor
    inputs: tuple[int, ...]

    def factor(self, layer: str, family: str | None) -> Factor:
        """The same as the factor of `layer`, of scale 1, its alpha being its rank."""
        rank = self.down.shape[0]
        down = self.down.float().reshape(rank, *self.inputs)
        up = self.up.float().reshape(-1, rank, *[1] * (len(self.inputs) - 1))
        return shaped(layer, LowRank(down.contiguous(), up.contiguous(), float(rank)), family)


@dataclass(frozen=True)
class Cut:
    """An adapter of lower rank. `error` is |lost| / |whole| of all layers together in the Frobenius norm, and `worst`
    the layer that loses most of itself, with its own error."""

    adapter: Adapter
    error: float
    worst: tuple[str, float]


def add(adapters: Sequence[tuple[Adapter, float]], name: str) -> Adapter:
    """The sum of the adapters, each times its weight, exactly: the ranks of a layer add up.

    Raises UsageError for adapters of different families, and names the layer that differs in shape or has no low-rank
    form.
    """
    return _made(name, "sum", adapters, {layer: _joined(pairs) for layer, pairs in _by_layer(adapters).items()})


def add_and_cut(adapters: Sequence[tuple[Adapter, float]], name: str, rank: int) -> Cut:
    """The best approximation of the weighted sum with at most `rank` ranks a layer (Eckart and Young 1936).

    Raises UsageError as `add` does.
    """
    _check_rank(rank)
    pairs = {layer: _joined(several) for layer, several in _by_layer(adapters).items()}
    return _cut(pairs, lambda values: rank, lambda cut: _made(name, "svd", adapters, cut))


def add_clustered(adapters: Sequence[tuple[Adapter, float]], name: str, rank: int) -> Adapter:
    """LoRA-LEGO (Zhao et al. 2024): the units of all adapters grouped into `rank` clusters a layer; see `clustered`.

    A weight and a scale count as part of up. Raises UsageError as `add` does.
    """
    _check_rank(rank)
    merged = {}
    for layer, pairs in _by_layer(adapters).items():
        whole = _joined(pairs)
        ranks = [pair.down.shape[0] for pair in pairs]
        up, down = clustered(whole.up, whole.down, rank, sum(ranks) / len(ranks))
        merged[layer] = Pair(up, down, whole.inputs)
    return _made(name, "lego", adapters, merged)


def resize(adapter: Adapter, *, rank: int | None = None, energy: float | None = None) -> Cut:
    """`adapter` as a LoRA of at most `rank` ranks a layer, or of as few as keep the share `energy` of squared norm.

    What has no low-rank form (LoHa, full differences) is formed and decomposed whole. Raises
    UsageError where a layer cannot be a LoRA.
    """
    if (rank is None) == (energy is None):
        raise UsageError("A rank or an energy is needed, and not both.", "Give --rank 16, or --energy 0.95.")
    _check_rank(1 if rank is None else rank)
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"An energy of {energy:g} cannot be kept.", "Give a share above 0 and up to 1, e.g. 0.95.")
    _refuse_other_parts(adapter)
    pairs = {layer: _decomposed(adapter, layer) for layer in adapter.factors}
    metadata = {key: value for key, value in with_family(adapter).items() if key not in _STALE_KEYS}

    def kept(values: Tensor) -> int:
        if rank is not None:
            return rank
        squares = values.square()
        return 1 + int((squares.cumsum(0) < (energy or 1) * (1 - 1e-12) * squares.sum()).sum())

    def made(cut: Mapping[str, Pair]) -> Adapter:
        factors = {layer: pair.factor(layer, adapter.family) for layer, pair in cut.items()}
        return replace(adapter, factors=factors, unread=(), metadata=metadata)

    return _cut(pairs, kept, made)


def with_family(adapter: Adapter) -> dict[str, str]:
    """The metadata with the family, which the layers that are left may no longer tell."""
    return adapter.metadata | ({} if adapter.family is None else {FAMILY_KEY: adapter.family})


def _by_layer(adapters: Sequence[tuple[Adapter, float]]) -> dict[str, list[Pair]]:
    """The weighted pairs of every layer; checks all adapters first."""
    families = {adapter.family: adapter.name for adapter, _ in adapters if adapter.family is not None}
    if len(families) > 1:
        said = ", ".join(f"{name}: {NAMES[family]}" for family, name in families.items())
        raise UsageError(f"The adapters were made for different bases ({said}).", "Merge adapters of one family.")
    for adapter, _ in adapters:
        _refuse_other_parts(adapter)
    found: dict[str, list[Pair]] = {}
    for adapter, weight in adapters:
        for layer, factor in adapter.factors.items():
            pair = _pair(factor)
            if pair is None:
                raise UsageError(
                    f"{adapter.name}: {examples([layer])} is {factor.kind}, which has no exact low-rank form.",
                    "Turn the file into a LoRA first: studio resize FILE --rank 32 --out NEW.safetensors",
                )
            found.setdefault(layer, []).append(Pair(weight * pair.up, pair.down, pair.inputs))
            _check_shapes(layer, found[layer], adapter.name)
    return found


def _refuse_other_parts(adapter: Adapter) -> None:
    """What a LoRA of plain pairs could not hold would be lost in silence."""
    if not adapter.factors:
        raise UsageError(f"{adapter.name} changes no layer: it holds only embeddings or biases.", "Give a LoRA.")
    for layer, factor in adapter.factors.items():
        if isinstance(factor, Relative):
            raise UsageError(
                f"{adapter.name}: {examples([layer])} is {factor.kind}, whose change depends on the base.",
                "DoRA and OFT files cannot be merged or resized on their own.",
            )
    if adapter.biases:
        raise UsageError(
            f"{adapter.name} also changes biases, e.g. of {examples(adapter.biases)}, which a LoRA cannot hold.",
            "Use the file as it is.",
        )


def _check_shapes(layer: str, pairs: list[Pair], name: str) -> None:
    first, last = pairs[0], pairs[-1]
    if (first.up.shape[0], prod(first.inputs)) != (last.up.shape[0], prod(last.inputs)):
        sizes = " and ".join(f"{pair.up.shape[0]} x {' x '.join(map(str, pair.inputs))}" for pair in (first, last))
        raise UsageError(
            f"{examples([layer])} has different sizes in the adapters: {sizes} (in {name}).",
            "Merge adapters made for the same base.",
        )


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise UsageError(f"A rank of {rank} is none.", "Give a whole number of 1 or more.")


def _pair(factor: Factor) -> Pair | None:
    form = low_rank_form(factor)
    return None if form is None else Pair(form.up.flatten(1), form.down.flatten(1), tuple(form.down.shape[1:]))


def _decomposed(adapter: Adapter, layer: str) -> Pair:
    factor = adapter.factors[layer]
    if (pair := _pair(factor)) is not None:
        return pair
    change = factor.delta()
    if change.dim() < 2:
        raise UsageError(
            f"{adapter.name}: {examples([layer])} is a norm's weight, which no LoRA can change.",
            "Use the file as it is.",
        )
    u, values, v = torch.linalg.svd(change.double().flatten(1), full_matrices=False)
    return Pair(u * values, v, tuple(change.shape[1:]))


def _joined(pairs: Sequence[Pair]) -> Pair:
    return Pair(torch.cat([pair.up for pair in pairs], 1), torch.cat([pair.down for pair in pairs]), pairs[0].inputs)


def _cut(
    pairs: Mapping[str, Pair], kept: Callable[[Tensor], int], made: Callable[[Mapping[str, Pair]], Adapter]
) -> Cut:
    """Every pair with its first singular values only, `kept` of them."""
    cut: dict[str, Pair] = {}
    lost: dict[str, float] = {}
    whole: dict[str, float] = {}
    for layer, pair in pairs.items():
        left, up = torch.linalg.qr(pair.up.double())
        right, down = torch.linalg.qr(pair.down.double().T)
        u, values, v = torch.linalg.svd(up @ down.T, full_matrices=False)
        n = min(kept(values), len(values))
        root = values[:n].sqrt()
        cut[layer] = Pair(left @ u[:, :n] * root, (right @ v[:n].T * root).T, pair.inputs)
        lost[layer], whole[layer] = float(values[n:].square().sum()), float(values.square().sum())
    errors = {layer: sqrt(lost[layer] / whole[layer]) if whole[layer] else 0.0 for layer in pairs}
    worst = max(errors, key=errors.__getitem__)
    total = sum(whole.values())
    return Cut(made(cut), sqrt(sum(lost.values()) / total) if total else 0.0, (worst, errors[worst]))


def _made(name: str, method: Method, adapters: Iterable[tuple[Adapter, float]], pairs: Mapping[str, Pair]) -> Adapter:
    parts = list(adapters)
    family = next((adapter.family for adapter, _ in parts if adapter.family is not None), None)
    words = _words([adapter for adapter, _ in parts])
    sources = [{"name": adapter.name, "weight": weight} for adapter, weight in parts]
    metadata = {"studio.method": f"merge-{method}", "studio.merged_from": json.dumps(sources)}
    if family is not None:
        metadata[FAMILY_KEY] = family
    factors = {layer: pair.factor(layer, family) for layer, pair in pairs.items()}
    return Adapter(name, "LoRA", family, factors, {}, words, (), metadata)


def _words(adapters: Sequence[Adapter]) -> dict[str, dict[str, Tensor]]:
    """The embeddings of all adapters, which cannot be added up."""
    words: dict[str, dict[str, Tensor]] = {}
    for adapter in adapters:
        for token, towers in adapter.embeddings.items():
            known = words.setdefault(token, towers)
            if known.keys() != towers.keys() or not all(torch.equal(known[tower], towers[tower]) for tower in towers):
                raise UsageError(
                    f"Two of the adapters bring along a word {examples([token])}, and not the same.",
                    "Merge one of them, or train one with another word.",
                )
    return words
