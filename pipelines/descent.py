"""Moving latents down a loss, before a step of the sampler."""

from collections.abc import Callable

import torch

from studio.pipelines.compose import Run

Tensor = torch.Tensor


def slope(latents: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The loss [n] of latents [n, C, H, W], and its gradient: each picture's own, zero where it is not finite. One
    picture after the other, since what the gradients need of the network takes far more memory than a forward."""
    found, gradients = zip(*(_slope(one, loss) for one in latents.split(1)), strict=True)
    gradient = torch.cat(gradients)
    finite = gradient.isfinite().flatten(1).all(1)
    return torch.cat(found), torch.where(finite[:, None, None, None], gradient, 0.0)


def _slope(latents: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        moved = latents.detach().requires_grad_()
        found = loss(moved)
        (gradient,) = torch.autograd.grad(found.sum(), moved)
    return found.detach(), gradient


def unit(run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
    """What latents are multiplied by to have the variance that the UNet expects: samplers differ by a factor."""
    return run.scheduler.scale_model_input(torch.ones_like(latents), timestep)


def bounded(step: Tensor, longest: float) -> Tensor:
    """The step of each picture, no longer than that (root mean square): gradients leap where maps are nearly flat."""
    length = step.square().mean((1, 2, 3), keepdim=True).sqrt()
    return step * (longest / length.clamp(min=longest))
