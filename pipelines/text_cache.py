"""Keys and values of the text, computed once for all steps."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor


class TextCache:
    """What `attn2.to_k` and `attn2.to_v` of a UNet give for one text [B, N, C], whatever is hooked to them.

    The text and all that acts on those layers must stay as they are while the cache lives; another text passes by.
    """

    def __init__(self, text: Tensor) -> None:
        self._text = text
        self._known: dict[nn.Module, Tensor] = {}

    @contextmanager
    def over(self, unet: nn.Module) -> Iterator[None]:
        """Answer from the cache in the forwards of this block."""
        with ExitStack() as undo:
            for name, attention in unet.named_modules():
                if name.endswith("attn2"):
                    for part in ("to_k", "to_v"):
                        # An attribute of the object goes before a child module, which stays what and where it is.
                        vars(attention)[part] = self._instead_of(getattr(attention, part))
                        undo.callback(vars(attention).__delitem__, part)
            yield

    def _instead_of(self, layer: nn.Module) -> Any:
        def answer(text: Tensor) -> Tensor:
            if text is not self._text:
                return layer(text)
            if layer not in self._known:
                self._known[layer] = layer(text)
            return self._known[layer]

        return answer
