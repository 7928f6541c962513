"""The Triton kernel of widen.py."""
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

import torch

from studio.kernels.triton_support import accumulator, jit, power_of_two, tl, triton

Tensor = torch.Tensor


def blocks(layers: int, rows: int) -> dict[str, int]:
    """How much of the input a program takes for that many rows of adapters."""
    block = power_of_two(layers * rows)
    few = {"BLOCK_K": 64, "num_warps": 4} if block <= 64 else {"BLOCK_K": 32, "num_warps": 8}
    return {"BLOCK_R": block, "BLOCK_T": 16, "num_stages": 2} | few


@jit
def widen_kernel(
    x, down, gate, wide, T, K, k, x_t, gate_t, wide_t, rank,
    L: tl.constexpr, R: tl.constexpr, ACC: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A tile of tokens: x copied while all adapters shrink it, and the gate on what comes out."""
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    r = tl.arange(0, BLOCK_R)  # of all layers
    before = R if L == 3 else 0
    hidden = tl.zeros((BLOCK_T, BLOCK_R), dtype=ACC)
    for first in range(0, K, BLOCK_K):
        c = first + tl.arange(0, BLOCK_K)
        inside = (t[:, None] < T) & (c[None, :] < K)
        rows = tl.load(x + t[:, None] * x_t + c[None, :], mask=inside, other=0.0)
        tl.store(wide + t[:, None] * wide_t + (before + c)[None, :], rows, mask=inside)
        a = tl.load(down + r[None, :] * K + c[:, None], mask=(r[None, :] < L * R) & (c[:, None] < K), other=0.0)
        hidden += tl.dot(rows, a, out_dtype=ACC, input_precision="ieee")
    layer, own = r // R, r % R
    adapter = own // rank
    acts = (t[:, None] < T) & (r[None, :] < L * R)
    g = tl.load(gate + t[:, None] * gate_t + adapter[None, :], mask=acts & (adapter[None, :] < k), other=0.0)
    column = tl.where((L == 3) & (layer == 0), own, K + before + (layer - (1 if L == 3 else 0)) * R + own)
    at = wide + t[:, None] * wide_t + column[None, :]
    tl.store(at, (hidden * g.to(ACC)).to(wide.dtype.element_ty), mask=acts)


def widen_by_triton(x: Tensor, down: Tensor, gate: Tensor, rank: int) -> Tensor:
    """`widen` in one launch."""
    x = x if x.stride(1) == 1 else x.contiguous()
    (tokens, width), (layers, rows, _) = x.shape, down.shape
    wide, sizes = x.new_empty(tokens, width + layers * rows), blocks(layers, rows)
    widen_kernel[(triton.cdiv(tokens, sizes["BLOCK_T"]),)](
        x, down.contiguous(), gate.contiguous(), wide, tokens, width, gate.shape[1], x.stride(0), gate.shape[1],
        wide.stride(0), rank, L=layers, R=rows, ACC=accumulator(x.dtype), **sizes,
    )  # fmt: skip
    return wide
