"""What can be said of a factor without forming its change: a small file can stand for one that fits into no memory."""

from collections.abc import Iterator
from math import prod

import torch

from studio.factors import Dora, Factor, Full, Hadamard, Kronecker, LowRank, sizes_of
from studio.rotation import Rotation

Tensor = torch.Tensor


def alphas_of(factor: Factor) -> Iterator[float]:
    """Every scale that `factor` is multiplied by."""
    match factor:
        case LowRank() | Kronecker():
            yield factor.scale
        case Hadamard() | Rotation():
            yield 1.0 if factor.alpha is None else factor.alpha
        case Dora():
            yield from alphas_of(factor.inner)


def is_active(factor: Factor) -> bool:
    """Whether the change is anything but zero; low-rank pairs are asked at a random input, DoRA always is."""
    match factor:
        case LowRank():
            return factor.scale != 0 and bool(_at_random(factor).any())
        case Hadamard():
            return factor.alpha != 0 and is_active(factor.first) and is_active(factor.second)
        case Kronecker():
            whole = (is_active(one) if isinstance(one, LowRank) else bool(one.any()) for one in (factor.a, factor.b))
            return factor.scale != 0 and all(whole)
        case Full():
            return bool(factor.difference.any())
        case Rotation():
            return bool((factor.blocks != factor.blocks.mT).any())
    return True


def fits(factor: Factor, weight: Tensor) -> bool:
    """Whether the change can be brought to the shape of `weight`."""
    if isinstance(factor, Dora):
        norms = weight.shape[1] if factor.per_input and weight.dim() > 1 else weight.shape[0]
        return factor.magnitude.numel() == norms and fits(factor.inner, weight)
    if isinstance(factor, Rotation):
        return sizes_of(factor)[0] == weight.shape[0] and weight.dim() > 1
    return sizes_of(factor)[0] == weight.shape[0] and prod(shape_of(factor)) == weight.numel()


def shape_of(factor: Factor) -> tuple[int, ...]:
    """The shape of the change, of a convolution's with its kernel."""
    match factor:
        case LowRank():
            kernel = factor.down.shape[2:] if factor.mid is None else factor.mid.shape[2:]
            return (*sizes_of(factor), *kernel)
        case Hadamard():
            return shape_of(factor.first)
        case Kronecker():
            kernel = shape_of(factor.b)[2:] if isinstance(factor.b, LowRank) else factor.b.shape[2:]
            return (*sizes_of(factor), *kernel)
        case Full():
            return tuple(factor.difference.shape)
        case Rotation():
            return sizes_of(factor)[:1]
        case Dora():
            return shape_of(factor.inner)
    raise TypeError(factor)


def _at_random(factor: LowRank) -> Tensor:
    """What `factor` makes of one random input, but for its scale."""
    down, up = factor.down.flatten(1), factor.up.flatten(1).float()
    x = torch.randn(down.shape[1], generator=torch.Generator().manual_seed(0))
    inner = down.float() @ x
    if factor.mid is not None:
        inner = torch.einsum("pqhw,q->phw", factor.mid.float(), inner).flatten(1)
    return up @ inner
