"""Samplers by name, on the noise schedule that the base was trained with."""

from typing import TYPE_CHECKING, Any

from studio.errors import UsageError

if TYPE_CHECKING:
    from studio.models import BaseModel, Scheduler

DEFAULT = "default"
# Diffusers class and what is changed in its configuration. DDIM and DDPM would clip latents as if they were pixels.
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}
SCHEDULERS = (DEFAULT, *_SCHEDULERS)


def make_scheduler(base: "BaseModel", name: str) -> "Scheduler":
    """A fresh sampler `name` with the base's betas, prediction type and spacing; "default" is the base's own kind.

    Raises UsageError where the base's noise schedule does not allow the sampler.
    """
    import diffusers

    own = base.scheduler
    if name == DEFAULT:
        return type(own).from_config(own.config)
    if type(own).__name__.startswith("EDM"):
        raise UsageError(
            f"The base {base.source.name!r} has a noise schedule of its own (EDM), on which {name!r} draws nothing.",
            f"Use --scheduler {DEFAULT}.",
        )
    kind, changes = _SCHEDULERS[name]
    if changes.get("use_karras_sigmas") and own.config.get("rescale_betas_zero_snr"):
        # The schedule begins at pure noise; steps spaced by Karras et al. (2022) then hardly reach the picture.
        raise UsageError(
            f"The scheduler {name!r} fails on {base.source.name!r}: its schedule begins at pure noise.",
            "Use --scheduler dpm++2m instead.",
        )
    return getattr(diffusers, kind).from_config(own.config, **changes)
