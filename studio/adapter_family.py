"""Which family of bases an adapter was made for, by what only that family has."""

import re
from collections.abc import Iterable, Mapping

import torch

from studio.bases import FAMILY_NAMES
from studio.factors import Factor, sizes_of

FAMILY_KEY = "studio.family"
NAMES = FAMILY_NAMES | {"sd2": "Stable Diffusion 2", "sd3": "Stable Diffusion 3", "flux": "Flux"}
_BY_TEXT_WIDTH = {768: "sd15", 1024: "sd2", 2048: "sdxl"}
_BY_WORDS = (  # in what kohya's trainer and the model specification write into the metadata
    ("stable-diffusion-xl", "sdxl"), ("sdxl", "sdxl"), ("stable-diffusion-v1", "sd15"), ("sd_v1", "sd15"),
    ("sd_v2", "sd2"), ("stable-diffusion-v2", "sd2"), ("flux", "flux"), ("stable-diffusion-3", "sd3"), ("sd3", "sd3"),
)  # fmt: skip
_FLUX_BLOCK = re.compile(r"(?:^|[._])(?:single_transformer|double|single)_blocks[._]\d")
_WORDS_KEYS = ("modelspec.architecture", "ss_base_model_version")


def family_of(
    factors: Mapping[str, Factor],
    metadata: Mapping[str, str],
    embeddings: Mapping[str, Mapping[str, torch.Tensor]],
    keys: Iterable[str],
) -> str | None:
    """One of `NAMES`, or None where neither the studio's own note, nor layers, nor the metadata tell.

    `keys` are those of the file, whose layers may be cut and named otherwise.
    """
    if metadata.get(FAMILY_KEY) in NAMES:
        return metadata[FAMILY_KEY]
    if any(layer.startswith("transformer.") for layer in factors):
        return "flux" if any(map(_FLUX_BLOCK.search, keys)) else _by_words(metadata)
    widths = {sizes_of(factor)[1] for layer, factor in factors.items() if _reads_text(layer)}
    if len(widths) == 1 and (known := _BY_TEXT_WIDTH.get(next(iter(widths)))):
        return known
    if any(layer.startswith("text_encoder_2.") for layer in factors):
        return "sdxl"
    if any(layer.startswith(("unet.up_blocks.3.", "unet.down_blocks.3.")) for layer in factors):
        return _by_words(metadata) or "sd15"
    return _by_words(metadata) or _by_embeddings(embeddings)


def _reads_text(layer: str) -> bool:
    return layer.startswith("unet.") and layer.endswith(("attn2.to_k", "attn2.to_v"))


def _by_words(metadata: Mapping[str, str]) -> str | None:
    said = " ".join(metadata.get(key, "")[:200].lower() for key in _WORDS_KEYS)
    return next((family for word, family in _BY_WORDS if word in said), None)


def _by_embeddings(embeddings: Mapping[str, Mapping[str, torch.Tensor]]) -> str | None:
    for towers in embeddings.values():
        if "clip_g" in towers:
            return "sdxl"
        if "*" in towers:
            return {768: "sd15", 1024: "sd2"}.get(towers["*"].shape[-1])
    return None
