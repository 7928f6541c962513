"""One attention of a layer, and all that may be wanted of it: the public way to the kernels of attention.

Plain attention is the framework's own or that of xformers; with columns, regions or texts side by side the kernels of
attention_columns.py and region_attention.py take part.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from studio.kernels.attention_columns import attention_columns, probabilities, text_masses
from studio.kernels.region_attention import Regions, SeenTexts, region_attention, region_text_attention

Tensor = torch.Tensor


@dataclass
class Asked:
    """Query [B, H, N, D], key and value [B, H, M, D]; `bias` [B or 1, 1, N, M] of the scores; `regions` of the pixels
    that query and key both are; `texts` that stand side by side in key and value.

    `keep` is given the mass [B, C, N] at `columns` [B, C]: each among the words of its own text where `among` texts
    stand side by side, whoever may see them.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    bias: Tensor | None = None
    regions: Regions | None = None
    texts: SeenTexts | None = None
    columns: Tensor | None = None
    among: int = 1
    keep: Callable[[Tensor], None] | None = None
    backend: str = "sdpa"

    @property
    def whole_bias(self) -> Tensor | None:
        """Bias, regions and texts as one bias [B, 1, N, M]."""
        parts = [self.bias] if self.bias is not None else []
        if self.regions is not None:
            parts.append(self.regions.bias(self.query.dtype))
        if self.texts is not None:
            parts.append(self.texts.bias(self.key.shape[2], self.query.dtype))
        return sum(parts[1:], parts[0]) if parts else None

    def answer(self) -> Tensor:
        """The output [B, H, N, D]."""
        given = self.query, self.key, self.value
        if self.columns is not None and self.keep is not None:
            if self.among == 1 and self.regions is None and self.texts is None:
                out, mass = attention_columns(*given, self.columns, self.scale, self.bias)
                self.keep(mass)
                return out
            self.keep(lean(text_masses, self.query, self.key, self.columns, self.scale, self.among))
        if self.bias is None and self.texts is None and self.regions is not None:
            return region_attention(*given, self.regions, self.scale)
        if self.bias is None and self.regions is None and self.texts is not None and not torch.is_grad_enabled():
            return region_text_attention(*given, self.texts, self.scale)
        return plain(*given, self.scale, self.whole_bias, self.backend)

    def all_mass(self) -> Tensor:
        """The probabilities [B, N, M] of all keys, mean over the heads; computed again for gradients, not kept."""
        return lean(_mean_probabilities, self.query, self.key, self.scale, self.whole_bias)


def plain(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None, backend: str = "sdpa"
) -> Tensor:
    """Attention by `backend`; xformers has no part in what has a bias."""
    if backend == "xformers" and bias is None:
        operators: Any = importlib.import_module("xformers.ops")
        rows = (one.transpose(1, 2) for one in (query, key, value))
        return operators.memory_efficient_attention(*rows, scale=scale).transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)


def missing(backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot compute on `device`, in a sentence; None where it can."""
    if backend == "sdpa":
        return None
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed."
    return None if device.type == "cuda" else f"xformers computes on CUDA devices, not on {device.type}."


def lean(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), whose intermediate results are computed again for gradients, not kept."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    found: Any = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return found


def _mean_probabilities(query: Tensor, key: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    return probabilities(query, key, scale, bias).mean(1)
