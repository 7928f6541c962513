"""Networks of known shapes with random weights: time and memory do not ask what was learned."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from studio.adapters import Adapter
from studio.bases import EMBEDDED, find_base
from studio.factors import Factor, LowRank
from studio.models import BaseModel, load_base, wrap_pipe

Tensor = torch.Tensor
SDXL: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True,
}  # fmt: skip
SD15: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3), "attention_head_dim": 8, "cross_attention_dim": 768,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "sdxl": SDXL,
    "sd15": SD15,
    "sdxl-tenth": SDXL | {
        "sample_size": 8, "block_out_channels": (32, 64, 128), "attention_head_dim": (1, 2, 4), "norm_num_groups": 8,
        "cross_attention_dim": 64, "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 256,
    },
    "sd15-tenth": SD15 | {
        "sample_size": 8, "block_out_channels": (32, 64, 128, 128), "attention_head_dim": 4, "norm_num_groups": 8,
        "cross_attention_dim": 64,
    },
}  # fmt: skip
"""By name: as published, and a tenth as wide, as deep, on latents of 8 x 8."""
HALF_WIDE: dict[str, Any] = {
    "block_out_channels": (160, 320, 640),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "norm_num_groups": 32,
}
WORDS = 77


def random_unet(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A UNet of one of SHAPES, always with the same weights."""
    torch.manual_seed(0)
    with torch.device(device):
        unet: Any = UNet2DConditionModel.from_config(SHAPES[shape])
    return unet.to(dtype).eval().requires_grad_(False)


def copy_of(unet: Any) -> Any:
    """Another network with the same weights."""
    with torch.device(unet.device):
        twin: Any = UNet2DConditionModel.from_config(dict(unet.config))
    twin = twin.to(unet.dtype).eval().requires_grad_(False)
    twin.load_state_dict(unet.state_dict())
    return twin


def base_around(unet: Any, family: str) -> BaseModel:
    """A base of `family` with that UNet, and of the embedded base's parts what else a base has."""
    pipe = load_base(find_base(EMBEDDED), str(unet.device)).pipe
    if family == "sd15":
        pipe = StableDiffusionPipeline(
            pipe.vae, pipe.text_encoder, pipe.tokenizer, unet, pipe.scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,  # pyright: ignore
        )  # fmt: skip
    pipe.register_modules(unet=unet)
    return wrap_pipe(pipe)


def inputs_of(unet: Any, rows: int, seed: int = 0) -> dict[str, Any]:
    """What a forward of `rows` rows takes: noise, a time in the middle, text and what else the shape asks for."""
    drawn, config, like = torch.Generator().manual_seed(seed), unet.config, next(unet.parameters())

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=drawn).to(like)

    side = config["sample_size"]
    given: dict[str, Any] = {
        "sample": noise(rows, config["in_channels"], side, side),
        "timestep": torch.tensor(500, device=like.device),
        "encoder_hidden_states": noise(rows, WORDS, config["cross_attention_dim"]),
        "return_dict": False,
    }
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        ids = like.new_zeros(rows, 6)
        given["added_cond_kwargs"] = {"text_embeds": noise(rows, pooled), "time_ids": ids}
    return given


def random_pipe(changes: dict[str, Any]) -> Any:
    """An SDXL base with the embedded one's text encoders, a UNet like its but for `changes`, and an AutoencoderKL of
    the same grid, all weights of both random."""
    base = load_base(find_base(EMBEDDED), "cpu")
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel.from_config(dict(base.unet.config) | changes)
    vae: Any = AutoencoderKL.from_config({
        "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [32, 64, 128], "latent_channels": 4, "norm_num_groups": 8,
        "sample_size": base.native_size[0],
    })  # fmt: skip
    pipe = base.pipe
    pipe.unet, pipe.vae, pipe.scheduler = unet, vae, DDPMScheduler.from_config(base.scheduler.config)
    pipe.register_modules(unet=unet, vae=vae, scheduler=pipe.scheduler)
    return pipe


def random_lora(base: BaseModel, rank: int, seed: int) -> Adapter:
    """A LoRA on every attention layer, whose changes are a small part of the weights."""
    drawn = torch.Generator().manual_seed(seed)
    factors: dict[str, Factor] = {
        f"unet.{name}": LowRank(
            torch.randn(rank, layer.in_features, generator=drawn) / layer.in_features**0.5,
            torch.randn(layer.out_features, rank, generator=drawn) * 0.1 / rank**0.5,
            alpha=float(rank),
        )
        for name, layer in base.unet.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    }
    return Adapter(f"random{seed}", "LoRA", base.family, factors)
