"""Concepts of one training share an adapter, which acts once however many of them are in a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from studio.adapters import Adapter

Tensor = torch.Tensor


def owners_of(adapters: Sequence[Adapter]) -> tuple[int, ...]:
    """For each adapter the number of the one that stands for it: its own, counted without those that an earlier one
    stands for already."""
    distinct: list[Adapter] = []
    owners: list[int] = []
    for adapter in adapters:
        found = next((n for n, other in enumerate(distinct) if is_same(adapter, other)), None)
        if found is None:
            found = len(distinct)
            distinct.append(adapter)
        owners.append(found)
    return tuple(owners)


def firsts(owners: Sequence[int]) -> list[int]:
    """The place of each distinct adapter among all."""
    return [owners.index(n) for n in range(max(owners, default=-1) + 1)]


def shared_strengths(strengths: Sequence[float], owners: Sequence[int]) -> list[float]:
    """The strength of each distinct adapter: of those that it was given the one farthest from zero."""
    return [
        max((s for s, owner in zip(strengths, owners, strict=True) if owner == n), key=abs)
        for n in range(max(owners, default=-1) + 1)
    ]


def is_same(one: Adapter, other: Adapter) -> bool:
    """Whether both change the same by the same numbers and bring the same words, whatever they are called."""
    return one is other or all(
        _equal(a, b)
        for a, b in ((one.biases, other.biases), (one.embeddings, other.embeddings), (one.factors, other.factors))
    )


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one is other or (
            one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
            and bool(torch.equal(one, other))
        )  # fmt: skip
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if is_dataclass(one):
        return all(_equal(a, b) for a, b in zip(_values(one), _values(other), strict=True))
    return one == other


def _values(one: Any) -> Iterator[Any]:
    return (getattr(one, field.name) for field in fields(one))
