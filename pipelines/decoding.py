"""Pictures of latents."""

from typing import Any

import torch

from studio.errors import StudioError
from studio.models import BaseModel

Tensor = torch.Tensor


@torch.no_grad()
def decode(base: BaseModel, latents: Tensor, tiling: bool, output_type: str = "pil") -> Any:
    """Pictures of latents, of a type named as in diffusers; raises StudioError where half precision overflowed."""
    vae: Any = base.vae
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
    if tiling:
        vae.enable_tiling()
    try:
        if upcast:
            vae.to(torch.float32)
        shift = vae.config.get("shift_factor") or 0.0
        scaled = latents.to(vae.dtype) / vae.config["scaling_factor"] + shift
        pictures = torch.cat([vae.decode(one[None], return_dict=False)[0] for one in scaled])
    finally:
        if upcast:
            vae.to(torch.float16)
        vae.disable_tiling()
        base.pipe.maybe_free_model_hooks()
    if not pictures.isfinite().all():
        raise StudioError(
            f"The base {base.source.name!r} drew no numbers: its values overflow in {base.dtype}.",
            "Use a base whose VAE is made for half precision, or --device cpu.",
        )
    return base.pipe.image_processor.postprocess(pictures.float(), output_type=output_type)
