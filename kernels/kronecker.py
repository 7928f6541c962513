"""kron(a, b) @ x without the product (the "vec trick"): two small matrix products a token.

With X = x reshaped to [a2, b2]: y = a X b^T, read by rows in layout "kron" and by columns in layout "ibm". Of a
convolution, b has the kernel: it runs over a2 groups of channels, which a then mixes, or the other way round.
"""

from typing import Any

import torch
import torch.nn.functional as F

from studio.kernels.kronecker_triton import kronecker_by_triton
from studio.kernels.triton_support import compiles_for

Tensor = torch.Tensor


def reference(x: Tensor, a: Tensor, b: Tensor, layout: str = "kron") -> Tensor:
    """x [..., a2 b2] -> [..., a1 b1] by the dense product."""
    dense = torch.einsum("qi,pj->qpij" if layout == "kron" else "qi,pj->pqij", a, b)
    return x @ dense.reshape(a.shape[0] * b.shape[0], -1).T


def kronecker_linear(x: Tensor, a: Tensor, b: Tensor, layout: str = "kron") -> Tensor:
    """The same, contracting first with the factor that leaves less work."""
    if compiles_for(x, a, b) and pays(a, b):
        return fused(x, a, b, layout)
    return product(x, a, b, layout)


def fused(x: Tensor, a: Tensor, b: Tensor, layout: str) -> Tensor:
    """kronecker_linear by one kernel; under autocast in its type of number, as the framework's products are."""
    if torch.is_autocast_enabled(x.device.type):
        kind = torch.get_autocast_dtype(x.device.type)
        x, a, b = x.to(kind), a.to(kind), b.to(kind)
    return _FusedKronecker.apply(x, a, b, layout)  # pyright: ignore[reportReturnType]


class _FusedKronecker(torch.autograd.Function):
    """kronecker_linear by one kernel, which keeps nothing but x.

    With G = dy as [a1, b1] and Z = X b^T, computed again: da = sum of G Z^T, db = sum of (a^T G)^T X, dX = a^T G b.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layout: str) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.layout = layout
        return kronecker_by_triton(x, a, b, layout)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, a, b = ctx.saved_tensors
        (a1, a2), (b1, b2) = a.shape, b.shape
        g = d_y.reshape(-1, a1, b1) if ctx.layout == "kron" else d_y.reshape(-1, b1, a1).transpose(1, 2)
        grid = x.reshape(-1, a2, b2)
        d_x = d_a = d_b = None
        if ctx.needs_input_grad[0]:
            d_x = kronecker_by_triton(g.flatten(1), a.T, b.T, "kron").reshape(x.shape)
        if ctx.needs_input_grad[1]:
            d_a = _flat(g) @ _flat(grid @ b.T).T
        if ctx.needs_input_grad[2]:
            d_b = mixed(a.T, g).reshape(-1, b1).T @ grid.reshape(-1, b2)
        return d_x, d_a, d_b, None


def product(x: Tensor, a: Tensor, b: Tensor, layout: str) -> Tensor:
    """kronecker_linear by the framework's two products."""
    (a1, a2), (b1, b2) = a.shape, b.shape
    grid = x.unflatten(-1, (a2, b2))
    y = mixed(a, grid @ b.T) if b_comes_first(a, b) else mixed(a, grid) @ b.T  # [..., a1, b1]
    return (y if layout == "kron" else y.transpose(-1, -2)).reshape(*x.shape[:-1], a1 * b1)


def mixed(a: Tensor, rows: Tensor) -> Tensor:
    """a @ rows [..., a2, n] -> [..., a1, n], as one product and not one for each of the leading places."""
    return torch.einsum("qi,...in->...qn", a, rows)


def b_comes_first(a: Tensor, b: Tensor) -> bool:
    """Whether X b^T before a leaves less work than a X before b^T."""
    (a1, a2), (b1, b2) = a.shape, b.shape
    return a2 * b1 * (b2 + a1) <= a1 * b2 * (a2 + b1)


def pays(a: Tensor, b: Tensor) -> bool:
    """Whether what lies between the two products is large enough for one kernel to be faster than both."""
    (a1, a2), (b1, b2) = a.shape, b.shape
    return 2 * min(a2 * b1, a1 * b2) >= a2 * b2


def flops(tokens: int, a: Tensor, b: Tensor) -> int:
    """Of the forward, in the cheaper order."""
    (a1, a2), (b1, b2) = a.shape, b.shape
    return 2 * tokens * min(a2 * b1 * (b2 + a1), a1 * b2 * (a2 + b1))


def bytes_moved(tokens: int, a: Tensor, b: Tensor) -> int:
    """x and y once, and the factors."""
    (a1, a2), (b1, b2) = a.shape, b.shape
    return (tokens * (a1 * b1 + a2 * b2) + a.numel() + b.numel()) * a.element_size()


def _flat(rows: Tensor) -> Tensor:
    """[T, s, n] -> [s, T n]"""
    return rows.transpose(0, 1).reshape(rows.shape[1], -1)


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
