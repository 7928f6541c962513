"""What an adapter does to one weight: factors of every kind, and the dense change each stands for.

A change is a tensor of as many rows as the layer has outputs. Its other dimensions may be flattened, or of size one;
`fitted` gives it the weight's shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import sqrt
from typing import Literal, Protocol

import torch

from studio.errors import UsageError
from studio.rotation import Rotation

Tensor = torch.Tensor


class Factor(Protocol):
    """The change of one weight, in factored form."""

    @property
    def kind(self) -> str:
        """What users call it, e.g. "LoRA"."""
        ...

    @property
    def rank(self) -> int | None:
        """The rank that the file states, where the kind has one."""
        ...

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change in float32; only `Relative` ones need the base's `weight`."""
        ...


@dataclass(frozen=True)
class LowRank:
    """LoRA (Hu et al. 2021): alpha / rank times up @ down; with `mid`, LoCon's Tucker form.

    Linear: down [r, in], up [out, r]. Convolution: down [r, in, kh, kw], up [out, r, 1, 1]; with mid [r, r, kh, kw]
    down is [r, in, 1, 1]. An `alpha` of None means the rank, i.e. scale 1; `rank_stabilised` divides by its root.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None
    mid: Tensor | None = None
    rank_stabilised: bool = False

    @property
    def kind(self) -> str:
        """LoRA for a matrix, LoCon for a convolution."""
        return "LoRA" if self.down.dim() == 2 else "LoCon"

    @property
    def rank(self) -> int:
        """Rows of down."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What up @ down is multiplied by."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (sqrt(self.rank) if self.rank_stabilised else self.rank)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change in float32."""
        down, up = self.down.float(), self.up.float()
        if self.mid is not None:
            mid = self.mid.float()
            product = torch.einsum("op,pqhw,qi->oihw", up.flatten(1), mid, down.flatten(1))
        else:
            product = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
        return self.scale * product


@dataclass(frozen=True)
class Hadamard:
    """LoHa (Hyeon-Woo et al. 2022): alpha / rank times the elementwise product of two low-rank matrices."""

    first: LowRank
    second: LowRank
    alpha: float | None = None

    @property
    def kind(self) -> str:
        """LoHa."""
        return "LoHa"

    @property
    def rank(self) -> int:
        """Of each of the two matrices."""
        return self.first.rank

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change in float32."""
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return scale * self.first.delta() * self.second.delta()


@dataclass(frozen=True)
class Kronecker:
    """kron(a, b), a [a1, a2], b [b1, b2, ...]: DiffuseKronA (Marjit et al. 2024) and LoKr (Yeh et al. 2023).

    Layout "kron" is the product as everyone writes it, W[q b1 + p, i b2 + j] = a[q, i] b[p, j]. Layout "ibm" is what
    the published DiffuseKronA code computes, W[p a1 + q, i b2 + j] = a[q, i] b[p, j]: the same rows in another order.
    A matrix given as `LowRank` is LoKr's; only then `alpha / rank` counts (two whole matrices have scale 1).
    """

    a: Tensor | LowRank
    b: Tensor | LowRank
    alpha: float | None = None
    layout: Literal["kron", "ibm"] = "kron"

    @property
    def kind(self) -> str:
        """LoKr, or KronA in the permuted layout."""
        return "KronA (ibm)" if self.layout == "ibm" else "LoKr"

    @property
    def rank(self) -> int | None:
        """Of the low-rank matrix, `b`'s where both are; None where both are whole."""
        split = [one.rank for one in (self.b, self.a) if isinstance(one, LowRank)]
        return split[0] if split else None

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    def matrices(self) -> tuple[Tensor, Tensor]:
        """a [a1, a2] and b [b1, b2, ...], whole, in float32, without the scale."""
        return _whole(self.a), _whole(self.b)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change in float32."""
        a, b = self.matrices()
        rows = "qp" if self.layout == "kron" else "pq"
        product = torch.einsum(f"qi,pj...->{rows}ij...", a, b)
        shape = (a.shape[0] * b.shape[0], a.shape[1] * b.shape[1], *b.shape[2:])
        return self.scale * product.reshape(shape)


@dataclass(frozen=True)
class Full:
    """The whole change as one tensor of the weight's shape (LyCORIS `diff`, norms)."""

    difference: Tensor

    @property
    def kind(self) -> str:
        """A full difference."""
        return "full"

    @property
    def rank(self) -> None:
        """None: a full difference states no rank."""
        return None

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change in float32."""
        return self.difference.float()


@dataclass(frozen=True)
class Dora:
    """DoRA (Liu et al. 2024): W' = magnitude * (W + inner) / norm(W + inner); the change is W' - W.

    The norm is taken for each output, or for each input (older LyCORIS files) where `per_input`. A strength multiplies
    the whole change, as in LyCORIS and A1111.
    """

    inner: Factor
    magnitude: Tensor
    per_input: bool = False

    @property
    def kind(self) -> str:
        """DoRA, and on what."""
        return f"DoRA on {self.inner.kind}"

    @property
    def rank(self) -> int | None:
        """That of what it is on."""
        return self.inner.rank

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change in float32, of the shape of `weight`."""
        if weight is None:
            raise UsageError("A DoRA adapter changes a weight relative to it.", "Name the base with --base.")
        base = weight.float()
        moved = base + fitted(self.inner.delta(), base)
        kept = 1 if self.per_input else 0
        others = [d for d in range(base.dim()) if d != kept]
        norm = torch.linalg.vector_norm(moved, dim=others, keepdim=True) + torch.finfo(torch.float32).eps
        magnitude = self.magnitude.float().to(base.device).reshape(norm.shape)
        return magnitude * moved / norm - base


Relative = Dora | Rotation  # what changes a weight by what it is


def fitted(change: Tensor, weight: Tensor) -> Tensor:
    """`change` in the shape of `weight`: a matrix for a 1 x 1 convolution and the like. Raises ValueError."""
    if change.shape == weight.shape:
        return change.to(weight.device)
    if change.dim() == 0 or change.shape[0] != weight.shape[0] or change.numel() != weight.numel():
        raise ValueError(f"{list(change.shape)} does not fit {list(weight.shape)}")
    return change.to(weight.device).reshape(weight.shape)


def low_rank_form(factor: Factor) -> LowRank | None:
    """The same change as one pair, down [r, in, ...] and up [out, r, ...], of scale 1, exactly; None for other kinds.

    Tucker's core goes into down. A Kronecker product needs no SVD, but splits over the columns of its factors: rank
    a2 b1 or a1 b2, whichever is smaller; over a convolution's kernel only the first.
    """
    match factor:
        case LowRank(mid=None):
            return LowRank(factor.down.float(), factor.scale * factor.up.float())
        case LowRank(mid=Tensor() as mid):
            down = torch.einsum("pqhw,qi->pihw", mid.float(), factor.down.float().flatten(1))
            return LowRank(down, factor.scale * factor.up.float())
        case Kronecker():
            return _split_kronecker(factor)
    return None


def _split_kronecker(factor: Kronecker) -> LowRank:
    a, b = factor.matrices()
    (a1, a2), (b1, b2), kernel = a.shape, b.shape[:2], b.shape[2:]
    rows = "qp" if factor.layout == "kron" else "pq"
    if kernel or a2 * b1 <= a1 * b2:  # inner index (i, r): down = [i = i'] b[r, j], up = a[q, i] [p = r]
        down = torch.einsum("ik,rj...->irkj...", torch.eye(a2), b).reshape(a2 * b1, a2 * b2, *kernel)
        up = torch.einsum(f"qi,pr->{rows}ir", a, torch.eye(b1)).reshape(a1 * b1, a2 * b1, *(1 for _ in kernel))
    else:  # inner index (r, j): down = a[r, i] [j = j'], up = [q = r] b[p, j]
        down = torch.einsum("ri,jk->rjik", a, torch.eye(b2)).reshape(a1 * b2, a2 * b2)
        up = torch.einsum(f"qr,pj->{rows}rj", torch.eye(a1), b).reshape(a1 * b1, a1 * b2)
    return LowRank(down, factor.scale * up)


def sizes_of(factor: Factor) -> tuple[int, int]:
    """(outputs, inputs) of the layer that `factor` changes, kernels not counted where the factor tells."""
    match factor:
        case LowRank():
            return factor.up.shape[0], factor.down.shape[1]
        case Hadamard():
            return sizes_of(factor.first)
        case Dora():
            return sizes_of(factor.inner)
        case Kronecker():
            whole = [sizes_of(m) if isinstance(m, LowRank) else m.shape[:2] for m in (factor.a, factor.b)]
            return whole[0][0] * whole[1][0], whole[0][1] * whole[1][1]
        case Rotation():
            return factor.blocks.shape[:2].numel(), 0  # it tells nothing of the inputs
        case Full():
            shape = factor.difference.shape
            return shape[0], shape[1] if len(shape) > 1 else 1
    raise TypeError(factor)


def tensors_of(factor: object) -> Iterator[Tensor]:
    """Every tensor that `factor` is made of."""
    for field in fields(factor):  # pyright: ignore[reportArgumentType]
        value = getattr(factor, field.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, LowRank | Hadamard | Kronecker | Full | Dora):
            yield from tensors_of(value)


def _whole(matrix: Tensor | LowRank) -> Tensor:
    return matrix.delta() if isinstance(matrix, LowRank) else matrix.float()
