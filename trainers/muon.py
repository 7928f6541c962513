"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): every matrix moves by a step that turns all of its
directions by about as much, in place of one that a few of them rule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from studio.trainers.processes import ALONE, Team

_A, _B, _C = 3.4445, -4.7750, 2.0315  # the authors' odd polynomial: five times over, it takes .01 to 1 near 1
_ITERATIONS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """U S' V^T of matrix [m, n] = U S V^T, by Newton-Schulz steps: of singular values of more than a hundredth of the
    matrix's norm S' lies in .68 .. 1.14.

    The polynomial is one of the Gram matrix, whose side is the smaller of m and n, times the matrix.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    x = matrix / matrix.norm().clamp(min=1e-12)
    gram, one = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    factor = one  # a polynomial of `gram`, as all that it is multiplied with
    for _ in range(_ITERATIONS):
        now = factor @ gram @ factor
        factor = (_A * one + _B * now + _C * now @ now) @ factor
    return factor @ x


class Muon(Optimizer):
    """Steps on parameters of two or more dimensions, kernels taken flat; as large as Adam's usual ones (Liu et al.
    2025, arXiv:2502.16982, equation 4), so that rates of AdamW hold. The processes of a `team`, which hold the same
    gradients, share the work."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore
        """Move every parameter that has a gradient."""
        moved = [(one, group) for group in self.param_groups for one in group["params"] if one.grad is not None]
        moved.sort(key=lambda each: _work(each[0]), reverse=True)  # so that equal shares take equally long
        updates: list[Tensor] = []
        for number, (one, group) in enumerate(moved):
            mean = self.state[one].setdefault("momentum", torch.zeros_like(one))
            mean.lerp_(one.grad, 1 - group["momentum"])
            own = number % self.team.size == self.team.rank
            ahead = one.grad.lerp(mean, group["momentum"]).flatten(1)
            updates.append(orthogonalised(ahead) if own else torch.zeros_like(ahead))
        self.team.average(updates)  # each has those of its share, and zeros
        for (one, group), update in zip(moved, updates, strict=True):
            size = 0.2 * max(update.shape) ** 0.5 * self.team.size
            one.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * size * update.view_as(one))


def _work(one: Tensor) -> int:
    return one.numel() * min(len(one), one.numel() // len(one))


def matrices_of(model: nn.Module, others: tuple[str, ...] = ()) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(what Muon moves, what is left to AdamW): vectors, and layers whose names begin as one of `others`."""
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, one in model.named_parameters():
        parts[one.dim() < 2 or name.startswith(others)].append(one)
    return parts
