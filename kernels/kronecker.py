"""kron(a, b) @ x without the product (the "vec trick"): two small matrix products a token.

With X = x reshaped to [a2, b2]: y = a X b^T, read by rows in layout "kron" and by columns in layout "ibm". Of a
convolution, b has the kernel: it runs over a2 groups of channels, which a then mixes, or the other way round.
"""

from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def reference(x: Tensor, a: Tensor, b: Tensor, layout: str = "kron") -> Tensor:
    """x [..., a2 b2] -> [..., a1 b1] by the dense product."""
    dense = torch.einsum("qi,pj->qpij" if layout == "kron" else "qi,pj->pqij", a, b)
    return x @ dense.reshape(a.shape[0] * b.shape[0], -1).T


def kronecker_linear(x: Tensor, a: Tensor, b: Tensor, layout: str = "kron") -> Tensor:
    """The same, contracting first with the factor that leaves less work."""
    (a1, a2), (b1, b2) = a.shape, b.shape
    grid = x.unflatten(-1, (a2, b2))
    b_first = a2 * b2 * b1 + a1 * a2 * b1 <= a1 * a2 * b2 + a1 * b2 * b1
    y = a @ (grid @ b.T) if b_first else (a @ grid) @ b.T  # [..., a1, b1]
    return (y if layout == "kron" else y.transpose(-1, -2)).reshape(*x.shape[:-1], a1 * b1)


def conv_reference(x: Tensor, a: Tensor, b: Tensor, layout: str = "kron", **geometry: Any) -> Tensor:
    """x [N, a2 b2, H, W] -> [N, a1 b1, H', W'] by the dense kernel, b being [b1, b2, kh, kw]; `geometry` as for
    torch's conv2d: stride, padding, dilation."""
    dense = torch.einsum("qi,pjhw->qpijhw" if layout == "kron" else "qi,pjhw->pqijhw", a, b)
    return F.conv2d(x, dense.reshape(a.shape[0] * b.shape[0], -1, *b.shape[2:]), **geometry)


def kronecker_conv(x: Tensor, a: Tensor, b: Tensor, layout: str = "kron", **geometry: Any) -> Tensor:
    """The same by as many convolutions with b as the smaller side of a has groups."""
    (a1, a2), (b1, b2) = a.shape, b.shape[:2]
    groups = x.unflatten(1, (a2, b2))
    if a1 < a2:
        groups = _mixed(a, groups)
    y = F.conv2d(groups.flatten(0, 1), b, **geometry).unflatten(0, (len(x), -1))  # [N, a1 or a2, b1, H', W']
    if a1 >= a2:
        y = _mixed(a, y)
    return (y if layout == "kron" else y.transpose(1, 2)).reshape(len(x), a1 * b1, *y.shape[3:])


def _mixed(a: Tensor, groups: Tensor) -> Tensor:
    """[N, a2, ...] -> [N, a1, ...]"""
    return (a @ groups.flatten(2)).unflatten(2, groups.shape[2:])
