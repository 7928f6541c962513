"""Pictures of latents."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image

from studio.errors import StudioError
from studio.hush import hushed
from studio.models import BaseModel

Tensor = torch.Tensor


@torch.no_grad()
def decode(base: BaseModel, latents: Tensor, tiling: bool, output_type: str = "pil") -> Any:
    """Pictures of latents, of a type named as in diffusers; raises StudioError where half precision overflowed."""
    vae: Any = base.vae
    overflows = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
    tiled = vae.use_tiling  # maybe by the owner of the pipeline
    if tiling:
        vae.enable_tiling()
    try:
        with in_float32(vae) if overflows else nullcontext():
            shift = vae.config.get("shift_factor") or 0.0
            scaled = latents.to(vae.dtype) / vae.config["scaling_factor"] + shift
            pictures = torch.cat([vae.decode(one[None], return_dict=False)[0] for one in scaled])
    finally:
        vae.use_tiling = tiled
        base.pipe.maybe_free_model_hooks()
    if not pictures.isfinite().all():
        raise StudioError(
            f"The base {base.source.name!r} drew no numbers: its values overflow in {base.dtype}.",
            "Use a base whose VAE is made for half precision, or --device cpu.",
        )
    return base.pipe.image_processor.postprocess(pictures.float(), output_type=output_type)


@contextmanager
def in_float32(vae: Any) -> Iterator[None]:
    """Within, `vae` computes in float32."""
    usual = vae.dtype
    with hushed():  # diffusers warns of every change, one to the same type too
        vae.to(torch.float32)
    try:
        yield
    finally:
        with hushed():
            vae.to(usual)


@torch.no_grad()
def through_vae(base: BaseModel, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures of one size, encoded and decoded again: the best that `base` can show of them."""
    x = torch.from_numpy(np.stack([np.asarray(one.convert("RGB")) for one in pictures])).permute(0, 3, 1, 2)
    decoded: Any = base.vae(x.to(base.device, base.vae.dtype).div(127.5).sub(1))
    return base.pipe.image_processor.postprocess(decoded.sample.float(), output_type="pil")
