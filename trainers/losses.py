"""What the network is asked to predict, and how far it is off."""

import torch
from diffusers import DDPMScheduler

from studio.errors import UsageError
from studio.models import BaseModel


def noise_schedule(base: BaseModel) -> DDPMScheduler:
    """The base's own noise schedule for training; raises UsageError where its prediction type cannot be trained."""
    schedule: DDPMScheduler = DDPMScheduler.from_config(base.scheduler.config)
    kind = schedule.config.prediction_type
    if kind not in {"epsilon", "v_prediction"}:
        raise UsageError(f"The base predicts {kind!r}.", "Use a base that predicts epsilon or v_prediction.")
    if kind == "epsilon" and schedule.alphas_cumprod[-1] <= 0:
        raise UsageError(
            "The base predicts noise although its last timestep is pure noise: nothing could be learned there.",
            "Use a base with v_prediction, or set rescale_betas_zero_snr to false in its scheduler's configuration.",
        )
    return schedule


def draw_timesteps(count: int, total: int, how: str, generator: torch.Generator) -> torch.Tensor:
    """`count` timesteps in 0..total-1, "uniform" or "logit-normal" (centred at half the noise; Esser et al. 2024)."""
    if how == "uniform":
        return torch.randint(0, total, (count,), generator=generator)
    place = torch.randn(count, generator=generator).sigmoid()
    return (place * total).long().clamp(max=total - 1)


def target_of(
    schedule: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The noise, or the velocity sqrt(a) noise - sqrt(1-a) latents (Salimans and Ho 2022), as the schedule says."""
    if schedule.config.prediction_type == "epsilon":
        return noise
    return schedule.get_velocity(latents, noise, timesteps)


def prior_preserving_loss(
    prediction: torch.Tensor, target: torch.Tensor, instances: int, prior_weight: float
) -> torch.Tensor:
    """Mean squared error of the first `instances` samples plus `prior_weight` times that of the rest.

    Each is a mean of its own (Ruiz et al. 2023, equation 2).
    """
    errors = (prediction.float() - target.float()).square().flatten(1).mean(1)
    loss = errors[:instances].mean()
    return loss if instances == len(errors) else loss + prior_weight * errors[instances:].mean()
