"""The Triton kernel of blend.py."""
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

import torch

from studio.kernels.triton_support import accumulator, jit, tl, triton

Tensor = torch.Tensor
BLEND: dict[str, int] = {"BLOCK": 1024, "num_warps": 4}


@jit
def blend_kernel(
    predictions, weights, out, count, plane, pixels, w_s, w_n, w_p, guidance,
    S: tl.constexpr, TWO: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of numbers of the result; `plane` of them make a picture, `pixels` a channel, `count` all."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = weights + (at // plane) * w_n + (at % pixels) * w_p
    total = tl.zeros((BLOCK,), dtype=ACC)
    for s in range(S):
        w = tl.load(place + s * w_s, mask=inside, other=0.0).to(ACC)
        if TWO:
            u = tl.load(predictions + 2 * s * count + at, mask=inside, other=0.0).to(ACC)
            c = tl.load(predictions + (2 * s + 1) * count + at, mask=inside, other=0.0).to(ACC)
            total += w * (u + guidance * (c - u))
        else:
            total += w * tl.load(predictions + s * count + at, mask=inside, other=0.0).to(ACC)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def blend_by_triton(predictions: Tensor, weights: Tensor, guidance: float) -> Tensor:
    """`blend` as one launch."""
    predictions = predictions.contiguous()
    branches, conditions, count, channels, height, width = predictions.shape
    if weights.shape[2:].numel() > 1:
        weights = weights.expand(-1, -1, height, width)
    weights = weights.contiguous()
    out, pixels = predictions.new_empty(count, channels, height, width), height * width
    by_pixel, by_picture = weights.shape[2:].numel() > 1, weights.shape[1] > 1
    blend_kernel[(triton.cdiv(out.numel(), BLEND["BLOCK"]),)](
        predictions, weights, out, out.numel(), channels * pixels, pixels, weights.stride(0),
        weights.stride(1) if by_picture else 0, int(by_pixel), guidance,
        S=branches, TWO=conditions == 2, ACC=accumulator(out.dtype), **BLEND,
    )  # fmt: skip
    return out
