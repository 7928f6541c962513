"""The Triton kernel of kronecker.py: y[q, p] = sum over i of a[q, i] (sum over j of x[i, j] b[p, j]), nothing between
the two sums ever in memory. A program takes some tokens and a tile of q and p; what the tile needs of the inner sum it
computes itself, so that q has to fit into few tiles for this to pay."""
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

import torch

from studio.kernels.triton_support import accumulator, jit, tl, triton

Tensor = torch.Tensor
KRONECKER: dict[str, int] = {"BLOCK_T": 16, "BLOCK_P": 32, "BLOCK_Q": 16, "BLOCK_J": 32, "num_warps": 4}


@jit
def kronecker_kernel(
    x, a, b, out, T, A1, A2, B1, B2, x_t, a_q, a_i, b_p, b_j, o_q, o_p,
    ACC: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """out[t, q o_q + p o_p] for x [T, A2 B2]."""
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    q = tl.program_id(2) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    y = tl.zeros((BLOCK_T, BLOCK_P, BLOCK_Q), dtype=ACC)
    for i in range(A2):
        z = tl.zeros((BLOCK_T, BLOCK_P), dtype=ACC)
        for first in range(0, B2, BLOCK_J):
            j = first + tl.arange(0, BLOCK_J)
            rows = tl.load(
                x + t[:, None] * x_t + (i * B2 + j)[None, :], mask=(t[:, None] < T) & (j[None, :] < B2), other=0.0
            )
            columns = tl.load(
                b + p[None, :] * b_p + j[:, None] * b_j, mask=(p[None, :] < B1) & (j[:, None] < B2), other=0.0
            )
            z += tl.dot(rows, columns, out_dtype=ACC, input_precision="ieee")
        mix = tl.load(a + q * a_q + i * a_i, mask=q < A1, other=0.0).to(ACC)
        y += z[:, :, None] * mix[None, None, :]
    at = out + (t[:, None] * (A1 * B1) + p[None, :] * o_p)[:, :, None] + (q * o_q)[None, None, :]
    inside = ((t[:, None] < T) & (p[None, :] < B1))[:, :, None] & (q < A1)[None, None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=inside)


def kronecker_by_triton(x: Tensor, a: Tensor, b: Tensor, layout: str) -> Tensor:
    """kron(a, b) @ x for x [..., a2 b2] in one launch."""
    (a1, a2), (b1, b2), rows = a.shape, b.shape, x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = x.new_empty(len(rows), a1 * b1)
    tiles = [triton.cdiv(size, KRONECKER[f"BLOCK_{axis}"]) for axis, size in (("T", len(rows)), ("P", b1), ("Q", a1))]
    kronecker_kernel[tuple(tiles)](
        rows, a, b, out, len(rows), a1, a2, b1, b2, rows.stride(0), *a.stride(), *b.stride(),
        *((b1, 1) if layout == "kron" else (1, a1)), ACC=accumulator(x.dtype), **KRONECKER,
    )  # fmt: skip
    return out.view(*x.shape[:-1], -1)
