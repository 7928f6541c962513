"""What the network is asked to predict, and how far it is off."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler

from studio.errors import UsageError
from studio.models import BaseModel
from studio.trainers.recipe import Timesteps, Weighting
from studio.trainers.zero_snr import RESCALED, check_rescalable


@dataclass(frozen=True)
class NoiseSchedule:
    """A base's noise for training: `total` timesteps, and whether "epsilon" or "v_prediction" is asked for."""

    scheduler: Any  # a DDPMScheduler, whose annotations want timesteps of a narrower type than it takes
    prediction: str
    total: int

    def draw(self, count: int, kind: Timesteps, generator: torch.Generator) -> torch.Tensor:
        """Timesteps [count]: all alike, or "logit-normal", most in the middle: the logit of their place between clean
        and noise has a normal distribution (Esser et al. 2024, arXiv:2403.03206, equation 19 with m = 0, s = 1)."""
        if kind == "uniform":
            return torch.randint(0, self.total, (count,), generator=generator)
        places = torch.randn(count, generator=generator).sigmoid()
        return (places * self.total).long().clamp(max=self.total - 1)

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`latents` [B, C, h, w] with the `noise` of their `timesteps` [B]: sqrt(a) latents + sqrt(1-a) noise."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The noise, or the velocity sqrt(a) noise - sqrt(1-a) latents (Salimans and Ho 2022)."""
        if self.prediction == "epsilon":
            return noise
        return self.scheduler.get_velocity(latents, noise, timesteps)

    def weights(self, timesteps: torch.Tensor, weighting: Weighting, gamma: float) -> torch.Tensor:
        """What the errors of `timesteps` [B] count, by their signal-to-noise ratio s = a / (1 - a).

        "min-snr" (Hang et al. 2023, arXiv:2303.09556): min(s, gamma) / s for noise, min(s, gamma) / (s + 1) for
        velocity. "debiased" (Yu et al. 2023, arXiv:2310.08442): 1 / sqrt(min(s, 1000)), and 1 / (s + 1).
        """
        if weighting == "none":
            return torch.ones(len(timesteps), device=timesteps.device)
        kept = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
        ratio = kept / (1 - kept)
        if self.prediction == "epsilon":
            return ratio.clamp(max=gamma) / ratio if weighting == "min-snr" else ratio.clamp(max=1000).rsqrt()
        return (ratio.clamp(max=gamma) if weighting == "min-snr" else 1) / (ratio + 1)


def noise_schedule(base: BaseModel, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """The base's own schedule for training, or that rescaled as algorithm 1 of Lin et al. 2023 (arXiv:2305.08891).

    Raises UsageError where its prediction type cannot be trained, or not so.
    """
    if zero_terminal_snr:
        check_rescalable(base.scheduler.config)
    scheduler: Any = DDPMScheduler.from_config(base.scheduler.config, **(RESCALED if zero_terminal_snr else {}))
    kind = scheduler.config.prediction_type
    if kind not in {"epsilon", "v_prediction"}:
        raise UsageError(f"The base predicts {kind!r}.", "Use a base that predicts epsilon or v_prediction.")
    if kind == "epsilon" and scheduler.alphas_cumprod[-1] <= 0:
        raise UsageError(
            "The base predicts noise although its last timestep is pure noise: nothing could be learned there.",
            "Use a base with v_prediction, or set rescale_betas_zero_snr to false in its scheduler's configuration.",
        )
    return NoiseSchedule(scheduler, kind, scheduler.config.num_train_timesteps)


def pointwise(prediction: torch.Tensor, target: torch.Tensor, huber: float | None) -> torch.Tensor:
    """Squared errors in float32, or with `huber` = c the pseudo-Huber loss 2c (sqrt(e^2 + c^2) - c), which pulls with
    what is far off no harder than c."""
    squares = (prediction.float() - target.float()).square()
    return squares if huber is None else 2 * huber * ((squares + huber**2).sqrt() - huber)


def prior_preserving_loss(
    errors: torch.Tensor, own: torch.Tensor, instances: int, prior_weight: float, count: float | None = None
) -> torch.Tensor:
    """Mean of `errors` [B, C, h, w] of the first `instances` samples plus `prior_weight` times that of the rest.

    Each is a mean of its own (Ruiz et al. 2023, equation 2). In the first part too, what is not learned from the
    picture counts `prior_weight` times; `own` [B, 1, h, w] is the share that is. Where others of the `count` samples of
    either part are of another size, it is what these add to the two means over samples. Of a team it is the mean share,
    maybe a fraction: the mean of what its processes find is then that over all samples.
    """
    weights = own[:instances] + prior_weight * (1 - own[:instances])
    parts = ((1.0, weights * errors[:instances]), (prior_weight, errors[instances:]))
    shares = [len(part) / (count or len(part)) * weight * part.mean() for weight, part in parts if len(part)]
    return torch.stack(shares).sum()
