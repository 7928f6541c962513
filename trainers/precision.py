"""In which precision a training multiplies."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F


def mixed_precision(dtype: torch.dtype) -> str:
    """Accelerate's name for that of weights."""
    return {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def keep_softmax_wide(unet: UNet2DConditionModel) -> None:
    """Let the attention of `unet` leave autocast: the CPU's bfloat16 backward of it is seven times slower."""
    unet.set_attn_processor(WideAttention())  # pyright: ignore[reportArgumentType]


class WideAttention:
    """Attention that leaves autocast for its softmax."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """[B, N, C] -> [B, N, C], with keys and values of `encoder_hidden_states` [B, M, D] where given."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float() for x in projected)
        with torch.autocast(query.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(query, key, value)  # [B, heads, N, C / heads]
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))
