"""kron(a, b) @ x without the product (the "vec trick"): two small matrix products a token.

With X = x reshaped to [a2, b2]: y = a X b^T, read by rows in layout "kron" and by columns in layout "ibm".
"""

import torch

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
