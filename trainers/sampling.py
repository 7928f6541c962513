"""Pictures made with a base as it is now: class pictures before a training, previews during it."""

import torch
from PIL import Image

from studio.models import BaseModel
from studio.pipelines.decoding import decode


@torch.no_grad()
def draw(
    base: BaseModel, prompts: list[str], seeds: list[int], resolution: int, steps: int, guidance: float
) -> list[Image.Image]:
    """One square picture a prompt and seed, in one batch; no random generator but those of `seeds` is touched."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with torch.autocast(base.device.type, dtype=base.dtype, enabled=base.dtype != torch.float32):
        latents = base.pipe(
            prompt=prompts,
            width=resolution,
            height=resolution,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="latent",
        ).images
    return decode(base, latents, tiling=False)  # outside: autocast would take a VAE back that needs float32


def batch_size(resolution: int) -> int:
    """How many pictures of a size to make at once: 16 small ones, 2 of 512 px, 1 above."""
    return min(16, max(1, 2 * (512 // resolution) ** 2))
