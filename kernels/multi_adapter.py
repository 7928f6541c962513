"""Many low-rank changes of one linear layer in one go: who acts where is data, not state.

    y = sum_a w[t, a] * up_a.T @ (down_a @ x[t])        for tokens t and adapters a

`reference` is that loop. `stacked` shrinks with all adapters at once, weighs, and expands at once: best where most
adapters act on most tokens. `routed` gathers for each adapter the tokens it acts on: its cost is the number of
(token, adapter) pairs at work, so that k adapters on k disjoint regions cost as much as one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


@dataclass(frozen=True)
class Factors:
    """k adapters of one layer: down [k, r, in], up [k, r, out], their scales within up; lower ranks padded by zeros."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class Weights:
    """w [T, k] of T tokens; `index` [k, S] are the tokens of each adapter, padded by token 0 at weight 0 in
    `share` [k, S]."""

    dense: Tensor
    index: Tensor
    share: Tensor

    @classmethod
    def of(cls, dense: Tensor) -> "Weights":
        """From w [T, k] alone."""
        counts = (dense != 0).sum(0)
        longest = int(counts.max()) if len(counts) else 0
        order = (dense != 0).T.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
        share = dense.T.gather(1, order)
        return cls(dense, order, share)

    @property
    def sparse(self) -> bool:
        """Whether the pairs at work are few enough for gathering to pay."""
        return 2 * self.index.shape[1] <= self.dense.shape[0]


def reference(x: Tensor, factors: Factors, dense: Tensor) -> Tensor:
    """x [T, in], w [T, k] -> [T, out], one adapter after the other."""
    total = x.new_zeros(len(x), factors.up.shape[2])
    for a in range(len(factors.down)):
        total = total + dense[:, a, None] * (x @ factors.down[a].T @ factors.up[a])
    return total


def stacked(x: Tensor, factors: Factors, dense: Tensor) -> Tensor:
    """The same by one shrink to [T, k r], one weighing and one expansion."""
    k, rank, width = factors.down.shape
    hidden = F.linear(x, factors.down.reshape(k * rank, width)).unflatten(1, (k, rank))
    hidden = (hidden * dense[:, :, None]).flatten(1)
    return hidden @ factors.up.reshape(k * rank, -1)


def routed(x: Tensor, factors: Factors, weights: Weights) -> Tensor:
    """The same over the pairs at work alone: gathered to [k, S, in], two batched products, added where they belong."""
    chosen = x[weights.index.flatten()].unflatten(0, weights.index.shape)
    hidden = torch.bmm(chosen, factors.down.transpose(1, 2)) * weights.share[:, :, None]
    changes = torch.bmm(hidden, factors.up)
    return x.new_zeros(len(x), changes.shape[2]).index_add_(0, weights.index.flatten(), changes.flatten(0, 1))


def multi_adapter(x: Tensor, factors: Factors, weights: Weights) -> Tensor:
    """x [T, in] -> [T, out] by the cheaper of the two."""
    return routed(x, factors, weights) if weights.sparse else stacked(x, factors, weights.dense)
