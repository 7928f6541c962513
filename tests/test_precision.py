from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

from studio.bases import find_base
from studio.models import load_base
from studio.trainers.precision import WideAttention, mixed_precision


def test_a_cpu_trains_in_float32(tiny_sdxl: Path) -> None:
    assert mixed_precision(load_base(find_base(str(tiny_sdxl)), "cpu").dtype) == "no"


@pytest.mark.parametrize("context", [None, 5])
def test_wide_attention_is_softmax_of_scaled_products(context: int | None):
    torch.manual_seed(0)
    attention: Any = Attention(query_dim=8, cross_attention_dim=6 if context else None, heads=2, dim_head=4)
    attention.set_processor(WideAttention())
    x = torch.randn(3, 7, 8)
    words = torch.randn(3, context, 6) if context else None
    read = x if words is None else words

    def heads(layer: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:  # [B, heads, N, 4]
        return (values.double() @ layer.weight.double().T).reshape(3, -1, 2, 4).permute(0, 2, 1, 3)

    scores = heads(attention.to_q, x) @ heads(attention.to_k, read).transpose(-1, -2) / 2
    mixed = (scores.softmax(-1) @ heads(attention.to_v, read)).permute(0, 2, 1, 3).reshape(3, 7, 8)
    expected = mixed @ attention.to_out[0].weight.double().T + attention.to_out[0].bias.double()
    assert torch.allclose(attention(x, encoder_hidden_states=words).double(), expected, atol=1e-6)
