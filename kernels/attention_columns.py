"""Attention that also tells how much each pixel looks at chosen tokens: its output, and C columns of its probabilities,
mean over the heads, without ever holding the whole of them.

With S = scale q k^T + bias, L = logsumexp(S) and P = exp(S - L): out = P v, and the mass at token j is the mean over
heads of P[:, j]. Backward, from the gradients dO and G: dP = dO v^T + (G, at the columns) / heads,
dS = P o (dP - rowsum(P o dP)), dq = scale dS k, dk = scale dS^T q, dv = P^T dO. Where the text wants no gradient,
only dq is computed. On CUDA the keys of a text, up to 128, lie in one tile (attention_columns_triton.py).
"""

from typing import Any

import torch
import torch.nn.functional as F

from studio.kernels.attention_columns_triton import (
    backward_by_triton,
    chosen_keys,
    fits,
    forward_by_triton,
    mass_by_triton,
)
from studio.kernels.triton_support import compiles_for, wide

Tensor = torch.Tensor


def attention_columns(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[B, H, N, D], [B, H, M, D] twice, [B, C] -> (out [B, H, N, D], mass [B, C, N] in float32 at least).

    `bias` [B or 1, 1, N, M] is added to the scores; where it is -inf nobody looks. Differentiable but for the bias.
    """
    tile = compiles_for(query, key, value, columns) and bias is None and fits(query, key)
    out, mass = _Columns.apply(query, key, value, columns, scale, bias, tile)
    return out, mass


def reference(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same from all probabilities."""
    found = probabilities(query, key, scale, bias)
    chosen = found.gather(3, columns[:, None, None].expand(*found.shape[:3], -1))
    return (found @ value.to(found)).to(query.dtype), chosen.mean(1).transpose(1, 2)


def probabilities(query: Tensor, key: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """softmax(scale q k^T + bias) over the keys [B, H, N, M], in float32 at least."""
    return scores(query, key, scale, bias).softmax(3)


def scores(query: Tensor, key: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """scale q k^T + bias in float32 at least; a bias of booleans hides what is False."""
    exact = wide(query.dtype)
    found = scale * query.to(exact) @ key.to(exact).transpose(-1, -2)
    if bias is None:
        return found
    return found.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else found + bias.to(exact)


def text_masses(query: Tensor, key: Tensor, columns: Tensor, scale: float, texts: int) -> Tensor:
    """[B, C, N]: the mass at columns [B, C], each among the words of its text, of `texts` that stand side by side."""
    found = scores(query, key, scale)
    totals = found.unflatten(3, (texts, -1)).logsumexp(4)
    chosen, total = (
        one.gather(3, index[:, None, None].expand(*one.shape[:3], -1))
        for one, index in ((found, columns), (totals, columns // (found.shape[3] // texts)))
    )
    return (chosen - total).exp().mean(1).transpose(1, 2)


def column_mass(query: Tensor, key: Tensor, total: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """[B, C, N]: the mass at `key` [B, H, C, D], the chosen ones, of an attention whose scores have the logsumexp
    `total` [B, H, N], as fused attentions give it; for texts and pictures of any length."""
    if compiles_for(query, key, total) and bias is None:
        return mass_by_triton(query, key, total, scale)
    exact = wide(query.dtype)
    mass = query.new_empty(len(query), key.shape[2], query.shape[2], dtype=exact)
    for n in range(len(query)):  # a sample at a time: heads of all of them together would be copied
        chosen, pixels = key[n].to(exact) * scale, query[n].to(exact).transpose(1, 2)
        found = torch.baddbmm(total[n, :, None].to(exact), chosen, pixels, beta=-1)  # [H, C, N]
        if bias is not None:
            found += bias[n].to(exact).transpose(1, 2)
        torch.mean(found.exp_(), 0, out=mass[n])
    return mass


def flops(batch: int, heads: int, pixels: int, keys: int, width: int, columns: int) -> int:
    """Of the forward: two products with all keys, and one with the chosen ones."""
    return 2 * batch * heads * pixels * width * (2 * keys + columns)


def bytes_moved(batch: int, heads: int, pixels: int, keys: int, width: int, columns: int, size: int) -> int:
    """Read and written once, `size` bytes a number, the mass in float32."""
    return batch * (heads * width * (2 * pixels + 2 * keys) * size + 4 * pixels * columns)


class _Columns(torch.autograd.Function):
    """attention_columns, with `tile` by the kernels that hold all keys at once."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float, bias: Tensor | None,
        tile: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.scale, ctx.tile = scale, tile
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape, dtype=query.dtype, device=query.device).masked_fill(~bias, -torch.inf)
        if tile:
            out, mass, total = forward_by_triton(query, key, value, columns, scale)
        else:
            out, total = with_logsumexp(query, key, value, scale, bias)
            mass = column_mass(query, chosen_keys(key, columns), total, scale, _at(bias, columns))
        ctx.save_for_backward(query, key, value, columns, bias, out, total)
        return out, mass

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_mass: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, columns, bias, out, total = ctx.saved_tensors
        wants = ctx.needs_input_grad[:3]
        if ctx.tile:
            found = backward_by_triton(query, key, value, columns, ctx.scale, out, total, d_out, d_mass, wants)
        else:
            found = _backward(query, key, value, columns, ctx.scale, bias, out, total, d_out, d_mass, wants)
        return (*found, None, None, None, None)


def _at(bias: Tensor | None, columns: Tensor) -> Tensor | None:
    """[B, 1, N, C] of a bias [B or 1, 1, N, M]."""
    if bias is None:
        return None
    bias = bias.expand(len(columns), -1, -1, -1)
    return bias.gather(3, columns[:, None, None].expand(-1, bias.shape[1], bias.shape[2], -1))


def with_logsumexp(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention [B, H, N, D] and the logsumexp [B, H, N] of its scores, by the framework's fused one where the device
    has one that tells it; no gradients."""
    bias = None if bias is None else bias.to(query.dtype)
    if query.device.type == "cpu":
        operator: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, total, *_ = operator(query, key, value, attn_mask=bias, scale=scale)
        return out, total
    if query.is_cuda:
        if bias is not None:  # its rows have to begin at multiples of 16
            bias = F.pad(bias, (0, -bias.shape[3] % 16))[..., : bias.shape[3]]
            bias = bias.expand(len(query), query.shape[1], -1, -1)
        operator = torch.ops.aten._scaled_dot_product_efficient_attention
        out, total, *_ = operator(query, key, value, bias, compute_log_sumexp=True, scale=scale)
        return out, total[:, :, : query.shape[2]]
    found = scores(query, key, scale, bias)
    return (found.softmax(3) @ value.to(found)).to(query.dtype), found.logsumexp(3)


def _backward(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float, bias: Tensor | None, out: Tensor,
    total: Tensor, d_out: Tensor, d_mass: Tensor, wants: tuple[bool, ...],
) -> list[Tensor | None]:  # fmt: skip
    """Sample by sample, so that the probabilities of one are there at a time. The row sum of P o dP is that of
    dO o out and of what came by the columns."""
    exact, heads = wide(query.dtype), query.shape[1]
    found: list[list[Tensor]] = [[], [], []]
    for n in range(len(query)):
        q, k, v, o, d = (one[n].to(exact) for one in (query, key, value, out, d_out))
        chosen, own_total = k[:, columns[n]], total[n, :, :, None].to(exact)
        p, e = (torch.baddbmm(own_total, q, keys.mT, beta=-1, alpha=scale) for keys in (k, chosen))
        if bias is not None:
            own = bias[n if len(bias) > 1 else 0].to(exact)
            p, e = p + own, e + own[:, :, columns[n]]
        e = e.exp_().mul_(d_mass[n].to(exact).T / heads)  # what came by the columns: [H, N, C]
        row = (d * o).sum(2, keepdim=True) + e.sum(2, keepdim=True)
        d_s = torch.baddbmm(row, d, v.mT, beta=-1).mul_(p.exp_())
        if wants[0]:
            found[0].append(torch.baddbmm(e @ chosen, d_s, k, beta=scale, alpha=scale))
        if wants[1]:
            owner = F.one_hot(columns[n], k.shape[1]).to(exact)  # [C, M]: a product adds up in one order on any device
            d_k = d_s.mT @ q + owner.T @ (e.mT @ q)
            found[1].append(d_k.mul_(scale))
        if wants[2]:
            found[2].append(p.mT @ d)
    return [torch.stack(parts).to(query.dtype) if parts else None for parts in found]
