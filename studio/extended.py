"""Linear layers that multiply with their adapters in one product: for devices on which launches and traffic cost more
than arithmetic."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from studio.kernels.multi_adapter import Factors
from studio.kernels.widen import extended, span, widen

Tensor = torch.Tensor
MOST_ROWS = 256  # of the adapters of all layers that share an input: what the kernel holds in registers
Shares = Callable[[Tensor], Tensor | None]  # a layer's input -> weights [T, k] of its tokens; None where nobody acts


@dataclass(frozen=True)
class Member:
    """One of the layers that share an input."""

    module: nn.Linear
    factors: Factors
    shares: Shares


def can_extend(module: nn.Module) -> bool:
    """Whether the weight of `module` can be moved: it is a plain layer, and nothing moves it about already."""
    return type(module) is nn.Linear and module.weight.is_floating_point() and not hasattr(module, "_hf_hook")


def rows_of(factors: Factors) -> int:
    """R: what the factors take beside a weight, in full rows of 32 bytes."""
    k, rank = factors.down.shape[:2]
    return -(-k * rank // 16) * 16


def extend(members: Sequence[Member], undo: ExitStack) -> None:
    """Let the `members`, one layer or the queries, keys and values of one input, take it widened, until `undo`.

    Each weight is a part of what it is multiplied with; at the end it has a place of its own again.
    """
    rows, layers = rows_of(members[0].factors), len(members)
    down = torch.stack([_padded(one.factors.down.flatten(0, 1), rows) for one in members])
    shared = _Shared(down, members[0].factors.down.shape[1])
    for place, one in enumerate(members):
        wide, own, _ = extended(one.module.weight.data, _padded(one.factors.up.flatten(0, 1), rows), place, layers)
        one.module.weight.data = own
        undo.callback(_take_back, one.module)
        columns = span(place, layers, own.shape[1], rows)
        attributes: Any = vars(one.module)
        attributes["forward"] = _forward(one, shared, wide, columns, last=place == layers - 1)
        undo.callback(attributes.__delitem__, "forward")


class _Shared:
    """The widened input of the layers that share it: made when the first asks, let go of when the last has it."""

    def __init__(self, down: Tensor, rank: int) -> None:
        self._down, self._rank = down, rank
        self._of: tuple[Tensor, Tensor] | None = None
        self._wide: Tensor | None = None

    def __call__(self, x: Tensor, dense: Tensor, last: bool) -> Tensor:
        wide = self._wide
        if wide is None or self._of is None or self._of[0] is not x or self._of[1] is not dense:
            wide = widen(x.reshape(-1, x.shape[-1]), self._down, dense, self._rank)
            self._of, self._wide = (x, dense), wide
        if last:
            self._of = self._wide = None
        return wide


def _forward(one: Member, shared: _Shared, weight: Tensor, columns: slice, last: bool) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        dense = one.shares(x)
        if dense is None:
            return F.linear(x, one.module.weight, one.module.bias)
        rows = shared(x, dense, last)[:, columns]
        return F.linear(rows, weight, one.module.bias).view(*x.shape[:-1], -1)

    return forward


def _take_back(module: nn.Linear) -> None:
    module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)


def _padded(rows: Tensor, count: int) -> Tensor:
    return F.pad(rows, (0, 0, 0, count - len(rows)))
