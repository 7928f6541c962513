"""Many low-rank changes of one linear layer in one go: who acts where is data, not state.

    y = sum_a w[t, a] * up_a.T @ (down_a @ x[t])        for tokens t and adapters a

`reference` is that loop. `stacked` shrinks with all adapters at once, weighs, and expands at once: best where most
adapters act on most tokens. `routed` gathers for each adapter the tokens it acts on: its cost is the number of
(token, adapter) pairs at work, so that k adapters on k disjoint regions cost as much as one. `apart` does the same for
branches of one adapter each, whose tokens lie together already. Convolutions: kernels/multi_adapter_conv.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


@dataclass(frozen=True)
class Factors:
    """k adapters of one layer: down [k, r, in, *kernel], up [k, r, out], their scales within up; lower ranks padded by
    zeros."""

    down: Tensor
    up: Tensor

    @cached_property
    def flat(self) -> tuple[Tensor, Tensor]:
        """Of a linear layer, as [k r, in] and [k r, out]."""
        return self.down.flatten(0, 1), self.up.flatten(0, 1)

    @cached_property
    def shrinks(self) -> Tensor:
        """Of a linear layer, as [k, in, r]."""
        return self.down.transpose(1, 2)

    def only(self, chosen: list[int]) -> "Factors":
        """Some of the adapters, in ascending order; without a copy where they stand side by side."""
        if len(chosen) == len(self.down):
            return self
        side_by_side = chosen[-1] - chosen[0] == len(chosen) - 1
        some = slice(chosen[0], chosen[-1] + 1) if side_by_side else chosen
        return Factors(self.down[some], self.up[some])


@dataclass(frozen=True)
class Places:
    """Where computed rows belong among T places: each of `slots` gives every place one row [T] to add, and those that
    need none a row of zeros."""

    slots: tuple[Tensor, ...]

    @classmethod
    def of(cls, index: Tensor, share: Tensor, count: int) -> "Places":
        """For rows that go to `index` [P] of `count` places; those that weigh nothing in `share` [P], among them the
        last, are zero and go nowhere."""
        rows = share.nonzero().flatten()
        rows = rows[index[rows].argsort(stable=True)]
        goals = index[rows]
        each = torch.bincount(goals, minlength=count)
        rank = torch.arange(len(rows), device=index.device) - (each.cumsum(0) - each)[goals]
        slots = index.new_full((max(int(each.max()), 1), count), len(index) - 1)
        slots[rank, goals] = rows
        return cls(slots.unbind())

    def sum(self, rows: Tensor) -> Tensor:
        """rows [P, C] -> [T, C]. Gathered, not scattered: several times faster on a CPU, and the same in every run."""
        total = rows.index_select(0, self.slots[0])
        for slot in self.slots[1:]:
            total.add_(rows.index_select(0, slot))
        return total


@dataclass(frozen=True)
class Weights:
    """w [T, k] of T tokens."""

    dense: Tensor
    _spread: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def spread(self, rank: int) -> Tensor:
        """[T, k rank], an adapter's weight once for each row of it."""
        if rank not in self._spread:
            self._spread[rank] = self.dense.repeat_interleave(rank, 1)
        return self._spread[rank]

    @cached_property
    def cheapest(self) -> "Callable[[Tensor, Tensor, Factors, Weights], Tensor]":
        """Which of `stacked`, `routed` and `apart` to take: each returns `onto` with the changes, in place where no
        gradients are asked for."""
        if self.apart:
            return apart
        return routed if self.sparse else stacked

    @cached_property
    def silent(self) -> bool:
        """Whether nothing acts."""
        return not bool(self.dense.any())

    @cached_property
    def apart(self) -> bool:
        """Whether the tokens are k runs of one length, one after the other, and each adapter acts in its own alone."""
        tokens, k = self.dense.shape
        if k < 2 or tokens % k:
            return False
        runs = self.dense.unflatten(0, (k, -1)).any(1)  # [run, adapter]
        return not bool(runs.fill_diagonal_(False).any())

    @cached_property
    def own(self) -> Tensor:
        """[k, S, 1], where they are apart: what each adapter weighs in its run."""
        k = self.dense.shape[1]
        return self.dense.unflatten(0, (k, -1)).diagonal(dim1=0, dim2=2).T[..., None].contiguous()

    @cached_property
    def sparse(self) -> bool:
        """Whether the pairs at work are few enough for gathering to pay."""
        return 2 * self._longest <= self.dense.shape[0]

    @cached_property
    def index(self) -> Tensor:
        """[k, S], the tokens of each adapter, padded by others to one more than the most."""
        order = (self.dense != 0).T.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        return torch.cat([order[:, : self._longest], order[:, -1:]], 1)

    @cached_property
    def rows(self) -> Tensor:
        """[k S], the same in one."""
        return self.index.flatten()

    @cached_property
    def share(self) -> Tensor:
        """[k, S], their weights; zero for padding."""
        share = self.dense.T.gather(1, self.index)
        share[:, -1] = 0
        return share

    @cached_property
    def places(self) -> Places:
        """Of the k S rows among the tokens."""
        return Places.of(self.rows, self.share.flatten(), len(self.dense))

    @cached_property
    def column(self) -> Tensor:
        """[k, S, 1], the same."""
        return self.share[:, :, None]

    @cached_property
    def _longest(self) -> int:
        counts = (self.dense != 0).sum(0)
        return int(counts.max()) if len(counts) else 0


def reference(x: Tensor, factors: Factors, dense: Tensor) -> Tensor:
    """x [T, in], w [T, k] -> [T, out], one adapter after the other."""
    total = x.new_zeros(len(x), factors.up.shape[2])
    for a in range(len(factors.down)):
        total = total + dense[:, a, None] * (x @ factors.down[a].T @ factors.up[a])
    return total


def stacked(x: Tensor, onto: Tensor, factors: Factors, weights: Weights) -> Tensor:
    """The same added to `onto` [T, out], by one shrink to [T, k r], one weighing and one expansion."""
    down, up = factors.flat
    return _add(torch.addmm, onto, _weighed(F.linear(x, down), weights.spread(factors.down.shape[1])), up)


def routed(x: Tensor, onto: Tensor, factors: Factors, weights: Weights) -> Tensor:
    """The same over the pairs at work alone: gathered to [k, S, in], two batched products, added where they belong."""
    chosen = x.index_select(0, weights.rows).view(*weights.index.shape, -1)
    hidden = _weighed(torch.bmm(chosen, factors.shrinks), weights.column)
    return placed(onto, torch.bmm(hidden, factors.up).flatten(0, 1), weights, gathered=x.device.type != "cpu")


def placed(onto: Tensor, rows: Tensor, weights: Weights, gathered: bool) -> Tensor:
    """`onto` [T, out] with rows [k S, out] added where they belong: scattered, which only a CPU does in one order in
    every run, or gathered."""
    if torch.is_grad_enabled():
        return onto + weights.places.sum(rows) if gathered else onto.index_add(0, weights.rows, rows)
    return onto.add_(weights.places.sum(rows)) if gathered else onto.index_add_(0, weights.rows, rows)


def apart(x: Tensor, onto: Tensor, factors: Factors, weights: Weights) -> Tensor:
    """The same where adapters are apart: two batched products, nothing moved."""
    runs = (len(factors.down), -1)
    hidden = _weighed(torch.bmm(x.unflatten(0, runs), factors.shrinks), weights.own)
    return _add(torch.baddbmm, onto.unflatten(0, runs), hidden, factors.up).flatten(0, 1)


def flops(pairs: int, rank: int, width: int, outputs: int) -> int:
    """Of `pairs` of a token and an adapter at work."""
    return 2 * pairs * rank * (width + outputs)


def bytes_moved(tokens: int, width: int, outputs: int, size: int) -> int:
    """x read, what it is added to read and written; the factors are few beside them."""
    return tokens * (width + 2 * outputs) * size


def _weighed(hidden: Tensor, share: Tensor) -> Tensor:
    return hidden * share if torch.is_grad_enabled() else hidden.mul_(share)


def _add(product: Callable[..., Tensor], onto: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return product(onto, left, right) if torch.is_grad_enabled() else product(onto, left, right, out=onto)
