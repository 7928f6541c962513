"""OFT (Qiu et al. 2023, arXiv:2306.07280): a weight's rows turned by a rotation of blocks, in the form of LyCORIS."""

from dataclasses import dataclass

import torch

from studio.errors import UsageError

Tensor = torch.Tensor


@dataclass(frozen=True)
class Rotation:
    """OFT as LyCORIS's Diag-OFT and kohya have it: W' = R^T W by blocks of outputs; the change is
    W' - W. R is the Cayley transform of skew `blocks` [k, n, n]; an `alpha` over 0 bounds their norm to alpha k n."""

    blocks: Tensor
    alpha: float | None = None

    @property
    def kind(self) -> str:
        """OFT."""
        return "OFT"

    @property
    def rank(self) -> None:
        """None: a rotation states no rank."""
        return None

    def matrices(self) -> Tensor:
        """R - 1 [k, n, n] in float32."""
        q = skew(self.blocks.float())
        limit, norm = (self.alpha or 0.0) * q.shape[:2].numel(), float(q.norm())
        return cayley(q * (limit / norm) if 0 < limit < norm else q) - torch.eye(q.shape[1], device=q.device)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change in float32, of the shape of `weight`."""
        if weight is None:
            raise UsageError("An OFT adapter changes a weight relative to it.", "Name the base with --base.")
        turn, rows = self.matrices().to(weight.device), weight.float().reshape(*self.blocks.shape[:2], -1)
        return torch.einsum("knm,knj->kmj", turn, rows).reshape(weight.shape)


def skew(blocks: Tensor) -> Tensor:
    """The antisymmetric matrices [k, n, n] that files of OFT mean by any."""
    return blocks - blocks.mT


def cayley(q: Tensor) -> Tensor:
    """The rotations (1 + q) (1 - q)^-1 of antisymmetric `q` [k, n, n]."""
    one = torch.eye(q.shape[-1], device=q.device, dtype=q.dtype)
    return torch.linalg.solve(one - q, one + q)  # both commute
