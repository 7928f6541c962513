"""Samplers by name, on the noise schedule that the base was trained with."""

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from studio.errors import UsageError

if TYPE_CHECKING:
    from studio.adapters import Adapter
    from studio.models import BaseModel, Scheduler

DEFAULT = "default"
_PLAIN: dict[str, Any] = {  # of a base's own sampler that one by name does not take over
    "algorithm_type": "dpmsolver++", "use_karras_sigmas": False, "use_exponential_sigmas": False,
    "use_beta_sigmas": False, "use_lu_lambdas": False,
}  # fmt: skip
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
ZERO_SNR_NOTE = "studio.zero_terminal_snr"
"""In an adapter's metadata: trained on the base's schedule rescaled so that it ends in pure noise."""
ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""What a sampler's configuration then needs (Lin et al. 2023, arXiv:2305.08891)."""


def make_scheduler(base: "BaseModel", name: str, adapters: "Sequence[Adapter]" = ()) -> "Scheduler":
    """A fresh sampler `name` with the base's betas, prediction type and spacing; "default" is the base's own kind.

    Where one of `adapters` was trained to begin at pure noise and the base predicts velocity, the sampler begins there,
    and "default" is Euler's.
    Raises UsageError where the noise schedule does not allow the sampler.
    """
    import diffusers

    own = base.scheduler
    edm = type(own).__name__.startswith("EDM")
    begins_there = bool(own.config.get("rescale_betas_zero_snr"))
    can_begin_there = not edm and own.config.get("prediction_type") == "v_prediction"
    asked = any(one.metadata.get(ZERO_SNR_NOTE) == "True" for one in adapters)
    rescaled = asked and can_begin_there and not begins_there
    if name == DEFAULT and not rescaled:
        return type(own).from_config(own.config)
    if edm:
        raise UsageError(
            f"The base {base.source.name!r} has a noise schedule of its own (EDM), on which {name!r} draws nothing.",
            f"Use --scheduler {DEFAULT}.",
        )
    kind, changes = _SCHEDULERS["euler" if name == DEFAULT else name]
    changes = changes | (ZERO_SNR if rescaled else {})
    if changes.get("use_karras_sigmas") and (rescaled or begins_there):
        # The schedule begins at pure noise; steps spaced by Karras et al. (2022) then hardly reach the picture.
        raise UsageError(
            f"The scheduler {name!r} fails on {base.source.name!r}: drawing begins at pure noise there.",
            "Use --scheduler dpm++2m instead.",
        )
    sampler = getattr(diffusers, kind)
    if rescaled and not ZERO_SNR.keys() <= signature(sampler).parameters.keys():
        raise UsageError(
            f"A concept was trained to begin at pure noise (zero_terminal_snr), and {name!r} cannot.",
            "Use --scheduler euler.",
        )
    plain = {key: value for key, value in _PLAIN.items() if key in signature(sampler).parameters}
    return sampler.from_config(own.config, **plain | changes)
