"""The Triton kernels of attention_columns.py. Tensors are [B, H, N or M, D] of any strides but for the last, 1.

The chosen keys come gathered, [B, H, C, D]: with the logsumexp L of a row its mass at key j is exp(scale q k_j - L),
and what flows back through it, E = G P / heads, adds E k to dq, E^T q to the chosen rows of dk, and its row sum to
that of P o dP, which is rowsum(dO o out).
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from typing import Any

import torch

from studio.kernels.triton_support import accumulator, jit, power_of_two, tl, triton, wide

Tensor = torch.Tensor
WIDEST = 64  # of a head: what is wider spills registers
FORWARD: dict[str, int] = {"BLOCK_N": 64, "num_warps": 8, "num_stages": 1}
D_QUERY: dict[str, int] = {"BLOCK_N": 32, "num_warps": 8, "num_stages": 1}
D_TEXT: dict[str, int] = {"BLOCK_N": 32, "BLOCK_M": 64, "num_warps": 8, "num_stages": 1}
MASS: dict[str, int] = {"BLOCK_N": 64, "num_warps": 8, "num_stages": 1}
_FILLED = 264  # programs that keep a large device busy: two for each of 132 multiprocessors


@jit
def _load(start, rows, columns, stride, n_rows, n_columns):
    inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    return tl.load(start + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0)


@jit
def _scores(q, k, m, M, scale, ACC: tl.constexpr):
    s = tl.dot(q, tl.trans(k), out_dtype=ACC, input_precision="ieee") * scale
    return tl.where(m[None, :] < M, s, float("-inf"))


@jit
def forward_kernel(
    query, key, value, chosen, out, total, mass,
    q_b, q_h, q_n, k_b, k_h, k_m, v_b, v_h, v_m, o_b, o_h, o_n, B, N, M, C, scale,
    H: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of pixels of one sample, `HEADS` heads one after the other; the mass is summed over them."""
    b, part = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n, m = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    found = tl.zeros((BLOCK_N, BLOCK_C), dtype=ACC)
    for j in range(HEADS):
        h = part * HEADS + j
        q = _load(query + b * q_b + h * q_h, n, d, q_n, N, D)
        k = _load(key + b * k_b + h * k_h, m, d, k_m, M, D)
        s = _scores(q, k, m, M, scale, ACC)
        top = tl.max(s, 1)
        e = tl.exp(s - top[:, None])
        weight = tl.sum(e, 1)
        v = _load(value + b * v_b + h * v_h, m, d, v_m, M, D)
        o = tl.dot(e.to(v.dtype), v, out_dtype=ACC, input_precision="ieee") / weight[:, None]
        at = out + b * o_b + h * o_h + n[:, None].to(tl.int64) * o_n + d[None, :]
        tl.store(at, o.to(out.dtype.element_ty), mask=(n[:, None] < N) & (d[None, :] < D))
        own = top + tl.log(weight)
        tl.store(total + (b * H + h) * N + n, own, mask=n < N)
        k_c = _load(chosen + (b * H + h) * C * D, c, d, D, C, D)
        found += tl.exp(_scores(q, k_c, c, C, scale, ACC) - own[:, None])
    at = mass + ((part * B + b) * C + c[None, :]) * N + n[:, None]
    tl.store(at, found / H, mask=(n[:, None] < N) & (c[None, :] < C))


@jit
def _d_scores(
    q, do, key, value, k_c, out, total, d_mass, n, m, c, d, k_m, v_m, o_n, N, M, C, scale,
    H: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(k, P, dS, E) of a tile of pixels, where rows beyond the last are zero in dS and E."""
    own = tl.load(total + n, mask=n < N, other=float("inf"))
    g = tl.load(d_mass + c[None, :] * N + n[:, None], mask=(n[:, None] < N) & (c[None, :] < C), other=0.0)
    e = g / H * tl.exp(_scores(q, k_c, c, C, scale, ACC) - own[:, None])
    o = _load(out, n, d, o_n, N, D)
    row = tl.sum(do.to(ACC) * o.to(ACC), 1) + tl.sum(e, 1)
    v = _load(value, m, d, v_m, M, D)
    d_p = tl.dot(do, tl.trans(v), out_dtype=ACC, input_precision="ieee") - row[:, None]
    k = _load(key, m, d, k_m, M, D)
    p = tl.exp(_scores(q, k, m, M, scale, ACC) - own[:, None])
    return k, p, p * d_p, e


@jit
def d_query_kernel(
    query, key, value, chosen, out, total, d_out, d_mass, d_query,
    q_b, q_h, q_n, k_b, k_h, k_m, v_b, v_h, v_m, o_b, o_h, o_n, d_b, d_h, d_n, N, M, C, scale,
    H: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq of a tile of pixels, one head."""
    b, h = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n, m = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    q = _load(query + b * q_b + h * q_h, n, d, q_n, N, D)
    do = _load(d_out + b * d_b + h * d_h, n, d, d_n, N, D)
    k_c = _load(chosen + (b * H + h) * C * D, c, d, D, C, D)
    k, _, d_s, e = _d_scores(
        q, do, key + b * k_b + h * k_h, value + b * v_b + h * v_h, k_c,
        out + b * o_b + h * o_h, total + (b * H + h) * N, d_mass + b * C * N, n, m, c, d, k_m, v_m, o_n, N, M, C,
        scale, H, D, ACC,
    )  # fmt: skip
    d_q = tl.dot(d_s.to(k.dtype), k, out_dtype=ACC, input_precision="ieee")
    d_q += tl.dot(e.to(k.dtype), k_c, out_dtype=ACC, input_precision="ieee")
    at = d_query + ((b * H + h) * N + n[:, None]) * D + d[None, :]
    tl.store(at, (d_q * scale).to(d_query.dtype.element_ty), mask=(n[:, None] < N) & (d[None, :] < D))


@jit
def d_text_kernel(
    query, key, value, chosen, out, total, d_out, d_mass, d_key, d_value, d_chosen,
    q_b, q_h, q_n, k_b, k_h, k_m, v_b, v_h, v_m, o_b, o_h, o_n, d_b, d_h, d_n, N, M, C, scale,
    H: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dk, dv and the chosen keys' own share of a tile of keys of one head: all tiles of pixels one after the other, so
    that every run adds up alike."""
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    m, c, d = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    k_c = _load(chosen + (b * H + h) * C * D, c, d, D, C, D)
    d_k = tl.zeros((BLOCK_M, BLOCK_D), dtype=ACC)
    d_v = tl.zeros((BLOCK_M, BLOCK_D), dtype=ACC)
    d_c = tl.zeros((BLOCK_C, BLOCK_D), dtype=ACC)
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        q = _load(query + b * q_b + h * q_h, n, d, q_n, N, D)
        do = _load(d_out + b * d_b + h * d_h, n, d, d_n, N, D)
        _, p, d_s, e = _d_scores(
            q, do, key + b * k_b + h * k_h, value + b * v_b + h * v_h, k_c,
            out + b * o_b + h * o_h, total + (b * H + h) * N, d_mass + b * C * N, n, m, c, d, k_m, v_m, o_n, N, M, C,
            scale, H, D, ACC,
        )  # fmt: skip
        d_k += tl.dot(tl.trans(d_s).to(q.dtype), q, out_dtype=ACC, input_precision="ieee")
        d_v += tl.dot(tl.trans(p).to(do.dtype), do, out_dtype=ACC, input_precision="ieee")
        d_c += tl.dot(tl.trans(e).to(q.dtype), q, out_dtype=ACC, input_precision="ieee")
    at = ((b * H + h) * M + m[:, None]) * D + d[None, :]
    inside = (m[:, None] < M) & (d[None, :] < D)
    tl.store(d_key + at, (d_k * scale).to(d_key.dtype.element_ty), mask=inside)
    tl.store(d_value + at, d_v.to(d_value.dtype.element_ty), mask=inside)
    # every tile of keys computes and stores the same
    at = d_chosen + ((b * H + h) * C + c[:, None]) * D + d[None, :]
    tl.store(at, d_c * scale, mask=(c[:, None] < C) & (d[None, :] < D))


@jit
def mass_kernel(
    query, chosen, total, mass, q_b, q_h, q_n, N, C, scale,
    H: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """exp(scale q k^T - total) of a tile of pixels at the chosen keys, mean over the heads."""
    b = tl.program_id(1).to(tl.int64)
    n, c = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    found = tl.zeros((BLOCK_N, BLOCK_C), dtype=ACC)
    for h in range(H):
        q = _load(query + b * q_b + h * q_h, n, d, q_n, N, D)
        k_c = _load(chosen + (b * H + h) * C * D, c, d, D, C, D)
        own = tl.load(total + (b * H + h) * N + n, mask=n < N, other=float("inf")).to(ACC)
        found += tl.exp(_scores(q, k_c, c, C, scale, ACC) - own[:, None])
    at = mass + (b * C + c[None, :]) * N + n[:, None]
    tl.store(at, found / H, mask=(n[:, None] < N) & (c[None, :] < C))


def fits(query: Tensor, key: Tensor) -> bool:
    """Whether all keys of a text fit into one tile, and heads into registers."""
    return key.shape[2] <= 128 and power_of_two(query.shape[3]) <= WIDEST


def forward_by_triton(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, mass [B, C, N], logsumexp [B, H, N]) of attention to at most 128 keys."""
    query, key, value = map(_rows_in_one, (query, key, value))
    batch, heads, pixels, width = query.shape
    chosen = chosen_keys(key, columns)
    tiles = triton.cdiv(pixels, FORWARD["BLOCK_N"])
    parts = 1 if tiles * batch >= _FILLED else heads
    out, exact = torch.empty_like(query), wide(query.dtype)
    mass = query.new_empty(parts, batch, columns.shape[1], pixels, dtype=exact)
    total = query.new_empty(batch, heads, pixels, dtype=exact)
    forward_kernel[tiles, batch, parts](
        query, key, value, chosen, out, total, mass, *_strides(query, key, value, out), batch, pixels, key.shape[2],
        columns.shape[1], scale, H=heads, HEADS=heads // parts, D=width, BLOCK_M=power_of_two(key.shape[2]),
        **_blocks(query, columns), **FORWARD,
    )  # fmt: skip
    return out, mass.sum(0), total


def backward_by_triton(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float, out: Tensor, total: Tensor,
    d_out: Tensor, d_mass: Tensor, wants: tuple[bool, ...],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of query, key and value, those that are wanted; the text's two come together."""
    query, key, value, out, d_out = map(_rows_in_one, (query, key, value, out, d_out))
    (batch, heads, pixels, width), keys = query.shape, key.shape[2]
    chosen = chosen_keys(key, columns)
    given = (query, key, value, chosen, out, total, d_out, d_mass.to(total).contiguous())
    sizes = (*_strides(query, key, value, out, d_out), pixels, keys, columns.shape[1], scale)
    options = {"H": heads, "D": width} | _blocks(query, columns)
    found: list[Tensor | None] = [None, None, None]
    if wants[0]:
        found[0] = query.new_empty(batch, heads, pixels, width)
        tiles = triton.cdiv(pixels, D_QUERY["BLOCK_N"])
        d_query_kernel[tiles, batch, heads](
            *given, found[0], *sizes, **options, BLOCK_M=power_of_two(keys), **D_QUERY
        )  # fmt: skip
    if any(wants[1:]):
        d_key, d_value = (key.new_empty(batch, heads, keys, width) for _ in range(2))
        d_chosen = total.new_empty(batch, heads, columns.shape[1], width)
        tiles = triton.cdiv(keys, D_TEXT["BLOCK_M"])
        d_text_kernel[batch, heads, tiles](*given, d_key, d_value, d_chosen, *sizes, **options, **D_TEXT)
        owner = (columns[:, :, None] == torch.arange(keys, device=key.device)).to(total)  # [B, C, M]
        d_key = (d_key.to(total) + owner.transpose(1, 2)[:, None] @ d_chosen).to(key.dtype)
        found[1:] = [d_key, d_value]
    return [one if wanted else None for one, wanted in zip(found, wants, strict=True)]


def mass_by_triton(query: Tensor, chosen: Tensor, total: Tensor, scale: float) -> Tensor:
    """column_mass without a bias: [B, C, N]."""
    query, (batch, heads, pixels, width) = _rows_in_one(query), query.shape
    mass = query.new_empty(batch, chosen.shape[2], pixels, dtype=wide(query.dtype))
    mass_kernel[triton.cdiv(pixels, MASS["BLOCK_N"]), batch](
        query, chosen.contiguous(), total.contiguous(), mass, *query.stride()[:3], pixels, chosen.shape[2], scale,
        H=heads, D=width, **_blocks(query, chosen[0, 0, None, :, 0]), **MASS,
    )  # fmt: skip
    return mass


def chosen_keys(key: Tensor, columns: Tensor) -> Tensor:
    """[B, H, C, D] of keys [B, H, M, D] at columns [B, C]."""
    return key.gather(2, columns[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3]))


def _blocks(query: Tensor, columns: Tensor) -> dict[str, Any]:
    return {
        "ACC": accumulator(query.dtype),
        "BLOCK_C": power_of_two(columns.shape[1]),
        "BLOCK_D": power_of_two(query.shape[3]),
    }


def _rows_in_one(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for one in tensors for stride in one.stride()[:3]]
