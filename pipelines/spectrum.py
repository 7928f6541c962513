"""How much fine structure a prediction has: the spectrum of the clean latents that it stands for."""

from typing import Any

import torch

from studio.errors import UsageError

Tensor = torch.Tensor


def clean_latents(scheduler: Any, latents: Tensor, prediction: Tensor, timestep: Tensor) -> Tensor:
    """What the finished latents would be if `prediction` were right; `latents` as the scheduler holds them.

    (x - sqrt(1-a) e) / sqrt(a) for noise e, sqrt(a) x - sqrt(1-a) v for a velocity v (Salimans and Ho 2022).
    """
    share = scheduler.alphas_cumprod[int(timestep.round())].to(latents)
    signal, noise = share.sqrt(), (1 - share).sqrt()
    seen = scheduler.scale_model_input(latents, timestep)
    match scheduler.config["prediction_type"]:
        case "v_prediction":
            return signal * seen - noise * prediction
        case "epsilon":
            return (seen - noise * prediction) / signal
    return prediction


def check_measurable(scheduler: Any) -> None:
    """Raise UsageError where the scheduler does not tell how noisy its timesteps are."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UsageError(
            f"The spectrum of adapters cannot be measured with {type(scheduler).__name__}.",
            "Give the order of the concepts, or use another scheduler.",
        )


def radial_profile(values: Tensor) -> Tensor:
    """Means of [..., h, w] over rings of whole radius around (h // 2, w // 2): [..., rings]."""
    height, width = values.shape[-2:]
    down, right = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = (down[:, None] ** 2 + right**2).sqrt().long().flatten().to(values.device)
    sizes = torch.bincount(ring)
    sums = values.new_zeros(*values.shape[:-2], len(sizes)).index_add_(-1, ring, values.flatten(-2))
    return sums / sizes


def amplitudes(latents: Tensor) -> Tensor:
    """|Fourier transform| of [..., h, w], its zero frequency at (h // 2, w // 2), in float32."""
    return torch.fft.fftshift(torch.fft.fft2(latents.float()), dim=(-2, -1)).abs()


def fineness(latents: Tensor, radius: float) -> Tensor:
    """Mean log amplitude beyond `radius` of the largest, over rings and channels: [..., C, h, w] -> [...]."""
    profile = radial_profile((amplitudes(latents) + 1e-8).log())
    first = int(radius * (profile.shape[-1] - 1))
    return profile[..., first:].mean((-2, -1))
