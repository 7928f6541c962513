"""The input of a linear layer beside what k adapters make of it, so that layer and adapters are one product:

    y = x W^T + ((x A^T) o g) U = [x | h] [W | U^T]^T,  h = (x A^T) o g

`widen` makes [x | h]: the gate costs nothing there, and x is read once, also for three layers that share it (queries,
keys, values), which lie as [h_0 | x | h_1 | h_2] and take [h_0 | x], [x | h_1] and [x | h_1 | h_2] with zeros for h_1.
Backward: dx = d_wide at x + (d_h o g) A, dA = (d_h o g)^T x, dg = the sum of d_h o (x A^T) over an adapter's rank.
"""

from typing import Any

import torch

from studio.kernels.triton_support import compiles_for
from studio.kernels.widen_triton import widen_by_triton

Tensor = torch.Tensor


def widen(x: Tensor, down: Tensor, gate: Tensor, rank: int) -> Tensor:
    """x [T, K], down [L, R, K] of L layers (1 or 3), gate [T, k], whose adapters have `rank` rows of the R each, the
    rest being zero -> [T, K + L R]."""
    return _Widened.apply(x, down, gate, rank, compiles_for(x, down, gate))  # pyright: ignore[reportReturnType]


def reference(x: Tensor, down: Tensor, gate: Tensor, rank: int) -> Tensor:
    """The same by its parts."""
    return joined(x, torch.einsum("tk,lrk->ltr", x, down) * spread(gate, rank, down.shape[1]))


def span(layer: int, layers: int, width: int, rows: int) -> slice:
    """The columns that a layer takes of what is `width` + `layers` * `rows` wide."""
    if layers == 1:
        return slice(0, width + rows)
    return (slice(0, rows + width), slice(rows, 2 * rows + width), slice(rows, 3 * rows + width))[layer]


def extended(weight: Tensor, up: Tensor, layer: int, layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """[out, columns of `span`], zeros but for the layer's `weight` [out, K] and the adapters' `up` [R, out], and the
    views of it that hold them: write into the second, and other adapters act."""
    rows, width = len(up), weight.shape[1]
    before = rows if layers == 3 and layer == 0 else 0
    after = rows * (layer if layers == 3 else 1)
    wide = weight.new_zeros(len(weight), before + width + after)
    own = wide[:, before : before + width]
    own.copy_(weight)
    theirs = wide[:, :rows] if before else wide[:, -rows:]
    theirs.copy_(up.T)
    return wide, own, theirs


def spread(gate: Tensor, rank: int, rows: int) -> Tensor:
    """[T, k] -> [T, rows]: each adapter's weight for its `rank` rows, zero for what is left."""
    return torch.nn.functional.pad(gate.repeat_interleave(rank, 1), (0, rows - gate.shape[1] * rank))


def joined(x: Tensor, hidden: Tensor) -> Tensor:
    """x [T, K] and hidden [L, T, R] as one."""
    first, *rest = hidden
    return torch.cat([first, x, *rest] if rest else [x, first], 1)


def flops(tokens: int, width: int, outputs: int, rows: int) -> int:
    """Of the adapters in one layer: shrinking and expanding."""
    return 2 * tokens * rows * (width + outputs)


def bytes_moved(tokens: int, width: int, rows: int, layers: int, size: int) -> int:
    """x read and written, all h written."""
    return tokens * (2 * width + layers * rows) * size


class _Widened(torch.autograd.Function):
    """`widen`, with `fused` by one kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, gate: Tensor, rank: int, fused: bool) -> Tensor:
        ctx.save_for_backward(x, down, gate)
        ctx.rank = rank
        return (widen_by_triton if fused else reference)(x, down, gate, rank)

    @staticmethod
    def backward(ctx: Any, d_wide: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, down, gate = ctx.saved_tensors
        layers, rows, width = down.shape
        before = rows if layers == 3 else 0
        parts = [d_wide[:, :rows]] * (layers == 3) + list(d_wide[:, before + width :].split(rows, 1))
        d_h = torch.stack(parts)  # [L, T, R]
        d_gated = d_h * spread(gate, ctx.rank, rows)
        d_x = d_down = d_gate = None
        if ctx.needs_input_grad[0]:
            d_x = d_wide[:, before : before + width] + torch.einsum("ltr,lrk->tk", d_gated, down)
        if ctx.needs_input_grad[1]:
            d_down = torch.einsum("ltr,tk->lrk", d_gated, x)
        if ctx.needs_input_grad[2]:
            each = (d_h * torch.einsum("tk,lrk->ltr", x, down)).sum(0)[:, : gate.shape[1] * ctx.rank]
            d_gate = each.unflatten(1, (gate.shape[1], ctx.rank)).sum(2)
        return d_x, d_down, d_gate, None, None
