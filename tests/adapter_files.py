"""Small adapter files for the tests of the library and of safety, written without the studio's own writers."""

from pathlib import Path

import torch
from safetensors.torch import save_file

Metadata = dict[str, str] | None
Tensors = dict[str, torch.Tensor]
Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def kohya_tensors(width: int = 768, rank: int = 2, seed: int = 0) -> Tensors:
    """One layer of a UNet that reads text of `width`, in kohya's names; 768 is Stable Diffusion 1.5."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{Q}.lora_down.weight": torch.randn(rank, width, generator=generator),
        f"{Q}.lora_up.weight": torch.randn(320, rank, generator=generator),
        f"{Q}.alpha": torch.tensor(1.0),
    }


def write_kohya(file: Path, metadata: Metadata = None, width: int = 768, more: Tensors | None = None) -> Path:
    """Save `kohya_tensors` and whatever else is given."""
    save_file(kohya_tensors(width) | (more or {}), file, metadata)
    return file
