"""Pictures and captions as a training step sees them: latents, text states, size conditions, and their order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image, ImageOps

from studio.buckets import Size
from studio.errors import StudioError
from studio.images import load_mask, load_rgb
from studio.models import BaseModel, module_id
from studio.pipelines.decoding import in_float32
from studio.trainers.cache import Tensors, file_id, remember

_VERSION = "2"  # of what lies in the cache: raise it when preprocessing changes


@dataclass(frozen=True)
class Example:
    """A picture and its words.

    Only in `region` (left, top, right, bottom in fractions of the square; None: everywhere) and in `beyond`, a second
    one, or where `masked` in its mask, is it learned from. For the rest holds what the base makes of the words `plain`,
    by default the same.
    It is trained at `size` (None: the square), and `mirrored` from left to right where that is asked.
    """

    path: Path
    prompt: str
    plain: str | None = None
    region: tuple[float, float, float, float] | None = None
    beyond: tuple[float, float, float, float] | None = None
    masked: bool = False
    size: Size | None = None
    mirrored: bool = False

    def facing(self, image: Image.Image) -> Image.Image:
        """`image`, or its mirror image where that is asked."""
        return ImageOps.mirror(image) if self.mirrored else image


@dataclass(frozen=True)
class Batch:
    """What the UNet is asked about: latents [B, C, h, w], embeds [B, N, D]; for SDXL pooled [B, P], time_ids [B, 6].

    `own` [B, 1, h, w] is the share of each place that is learned from the picture; `plain_embeds`, `plain_pooled` are
    the words by which the base says the rest. `prompts` are what `embeds` were made of.
    """

    prompts: tuple[str, ...]
    latents: torch.Tensor
    embeds: torch.Tensor
    pooled: torch.Tensor | None
    time_ids: torch.Tensor | None
    own: torch.Tensor
    plain_embeds: torch.Tensor
    plain_pooled: torch.Tensor | None

    def rows(self, chosen: list[int], device: torch.device | None = None) -> "Batch":
        """The samples `chosen`, on `device` where it is given."""
        parts: Any = [getattr(self, field.name) for field in fields(self)[1:]]
        chosen_parts: Any = [None if part is None else part[chosen].to(device or part.device) for part in parts]
        return Batch(tuple(self.prompts[row] for row in chosen), *chosen_parts)

    @staticmethod
    def joined(batches: Sequence["Batch"]) -> "Batch":
        """All samples, in order."""
        parts: Any = [[getattr(batch, field.name) for batch in batches] for field in fields(Batch)[1:]]
        joined: Any = [None if part[0] is None else torch.cat(part) for part in parts]
        return Batch(tuple(prompt for batch in batches for prompt in batch.prompts), *joined)


@dataclass(frozen=True)
class Examples:
    """All pictures of one kind and size, encoded: `whole` has the means of their latents in the UNet's scale, and `std`
    [N, C, h, w] is there for a VAE that has it."""

    whole: Batch
    std: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.whole.latents)

    def batch(self, chosen: list[int], generator: torch.Generator) -> Batch:
        """The examples of the indices `chosen`; a VAE with moments is sampled anew with `generator`."""
        found = self.whole.rows(chosen)
        if self.std is None:
            return found
        moved = self.std[chosen] * torch.randn(found.latents.shape, generator=generator)
        return replace(found, latents=found.latents + moved)


def square(image: Image.Image, resolution: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """`covering` of a square."""
    return covering(image, (resolution, resolution))


def covering(image: Image.Image, size: Size) -> tuple[torch.Tensor, tuple[int, int]]:
    """Scale `image` to cover `size` and cut it at its centre.

    Returns [3, height, width] in -1..1, and the (top, left) of the cut in the scaled picture.
    """
    scale = max(wanted / side for wanted, side in zip(size, image.size, strict=True))
    width, height = (max(wanted, round(side * scale)) for wanted, side in zip(size, image.size, strict=True))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    scaled = image.resize((width, height), Image.Resampling.LANCZOS)
    cut = scaled.crop((left, top, left + size[0], top + size[1]))
    pixels = torch.from_numpy(np.asarray(cut, dtype=np.float32).transpose(2, 0, 1).copy())
    return pixels / 127.5 - 1, (top, left)


def encode_examples(
    base: BaseModel, examples: Sequence[Example], resolution: int, cache: Path, true_sizes: bool
) -> Examples:
    """Pictures of one size (by default the square of `resolution`) with their prompts, encoded by `base` or taken from
    `cache`.

    `true_sizes` gives SDXL each picture's own size and cut as condition, as it was trained; else the trained size.
    """
    coder = module_id(base.vae)
    across, upright = size = examples[0].size or (resolution, resolution)
    shape = str(across) if across == upright else f"{across}x{upright}"
    with in_float32(base.vae):  # SDXL's overflows in float16, and these are made once for all steps
        coded = [
            remember(
                cache,
                ("latents", _VERSION, file_id(one.path), f"{shape}{' mirrored' if one.mirrored else ''}", coder),
                lambda one=one: _encode_picture(base, one, size),
            )
            for one in examples
        ]
    words = _encode_prompts(base, [one.prompt for one in examples], cache)
    rest = _encode_prompts(base, [one.plain or one.prompt for one in examples], cache)
    scale, shift = base.vae.config["scaling_factor"], base.vae.config.get("shift_factor") or 0.0
    mean = (torch.stack([one["mean"] for one in coded]) - shift) * scale
    std = torch.stack([one["std"] for one in coded]) * scale if "std" in coded[0] else None
    plain = (upright, across, 0, 0, upright, across)
    sizes = [(*one["geometry"].tolist(), upright, across) if true_sizes else plain for one in coded]
    time_ids = torch.tensor(sizes, dtype=torch.float32) if base.family == "sdxl" else None
    height, width = mean.shape[2:]
    own = torch.stack(
        [mask_share(one, size, height, width) if one.masked else _shares_of(one, height, width) for one in examples]
    )
    spoken = (words["embeds"], words.get("pooled"), time_ids, own, rest["embeds"], rest.get("pooled"))
    return Examples(Batch(tuple(one.prompt for one in examples), mean, *spoken), std)


def mask_share(one: Example, size: Size, height: int, width: int) -> torch.Tensor:
    """[1, height, width]: how much of each cell the picture's mask covers, cut like the picture; ones without."""
    mask = load_mask(one.path)
    if mask is None:
        return torch.ones(1, height, width)
    pixels = (covering(one.facing(mask.convert("RGB")), size)[0][:1] + 1) / 2
    return torch.nn.functional.adaptive_avg_pool2d(pixels.clamp(0, 1), (height, width))


def _shares_of(one: Example, height: int, width: int) -> torch.Tensor:
    """[1, height, width]: how much of each cell its regions cover."""
    share = _share_of(one.region, height, width)
    return share if one.beyond is None else torch.maximum(share, _share_of(one.beyond, height, width))


def _share_of(region: tuple[float, float, float, float] | None, height: int, width: int) -> torch.Tensor:
    """[1, height, width]: how much of each cell the region covers."""
    if region is None:
        return torch.ones(1, height, width)
    left, top, right, bottom = region
    columns = _covered(left, right, width)
    return (_covered(top, bottom, height)[:, None] * columns)[None]


def _covered(start: float, stop: float, cells: int) -> torch.Tensor:
    edges = torch.arange(cells + 1) / cells
    return (edges.clamp(max=stop)[1:] - edges.clamp(min=start)[:-1]).clamp(min=0) * cells


@torch.no_grad()
def _encode_picture(base: BaseModel, one: Example, size: Size) -> Tensors:
    image = one.facing(load_rgb(one.path))
    pixels, (top, left) = covering(image, size)
    geometry = torch.tensor([image.height, image.width, top, left], dtype=torch.float32)
    coded: Any = base.vae.encode(pixels[None].to(base.device, base.vae.dtype))
    if isinstance(base.vae, AutoencoderTiny):
        found = {"mean": coded.latents[0]}
    else:
        found = {"mean": coded.latent_dist.mean[0], "std": coded.latent_dist.std[0]}
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise StudioError(
            f"The base {base.source.name!r} makes no numbers of the picture {one.path.name}.",
            "Its VAE may be damaged: download or save the base again.",
        )
    return found | {"geometry": geometry}


def _encode_prompts(base: BaseModel, prompts: list[str], cache: Path) -> Tensors:
    encoders = "".join(module_id(encoder) for encoder in base.text_encoders)

    def states(prompt: str) -> Tensors:
        made = base.encode([prompt])
        found = {"embeds": made.embeds[0].float()}
        return found if made.pooled is None else found | {"pooled": made.pooled[0].float()}

    known = {p: remember(cache, ("text", _VERSION, p, encoders), lambda p=p: states(p)) for p in set(prompts)}
    return {part: torch.stack([known[p][part] for p in prompts]) for part in known[prompts[0]]}


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator that depends on `key` alone.

    Every random choice of a training is keyed by seed, purpose and step, so there is no state that could be lost in a
    restart or disturbed by a preview.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def chosen_from(first: int, count: int, size: int, *key: object) -> list[int]:
    """Which of `size` examples come next after `first`, `count` of them: endless epochs, each in its own order."""
    orders: dict[int, list[int]] = {}
    chosen: list[int] = []
    for place in range(first, first + count):
        epoch, index = divmod(place, size)
        if epoch not in orders:
            orders[epoch] = torch.randperm(size, generator=generator_for(*key, epoch)).tolist()
        chosen.append(orders[epoch][index])
    return chosen
