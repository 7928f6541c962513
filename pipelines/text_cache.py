"""Keys and values of the text, computed once for all steps."""

from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor


class TextRows:
    """What those layers gave for single rows, the `most` that were asked for last."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._rows: dict[Hashable, dict[nn.Module, Tensor]] = {}

    def find(self, keys: Sequence[Hashable], layer: nn.Module) -> Tensor | None:
        """[B, N, D] of the rows `keys`, or None where one is not known."""
        found = [row[layer] for key in keys if layer in (row := self._rows.get(key, {}))]
        return torch.stack(found) if len(found) == len(keys) else None

    def keep(self, keys: Sequence[Hashable], layer: nn.Module, made: Tensor) -> None:
        """Remember [B, N, D] as the rows `keys`."""
        for key, row in zip(keys, made, strict=True):
            self._rows[key] = self._rows.pop(key, {}) | {layer: row}
        self._rows = dict(list(self._rows.items())[-self._most :])


class TextCache:
    """What `attn2.to_k` and `attn2.to_v` of a UNet give for one text [B, N, C], whatever is hooked to them.

    The text and all that acts on those layers must stay as they are while the cache lives; another text passes by.
    Rows of the same key are the same in every batch that shares `rows`.
    """

    def __init__(self, text: Tensor, keys: Sequence[Hashable], rows: TextRows) -> None:
        self._text, self._keys, self._rows = text, keys, rows
        self._known: dict[nn.Module, Tensor] = {}
        self._unet: nn.Module | None = None
        self._instead: list[tuple[nn.Module, str, Any]] = []

    @property
    def tokens(self) -> int:
        """N."""
        return self._text.shape[1]

    @contextmanager
    def over(self, unet: nn.Module, but: Collection[nn.Module] = ()) -> Iterator[None]:
        """Answer from the cache in the forwards of this block, `but` for the attention layers that get it otherwise."""
        if unet is not self._unet:
            self._unet = unet
            readers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
            self._instead = [
                (one, part, self._instead_of(getattr(one, part))) for one in readers for part in ("to_k", "to_v")
            ]
        # An attribute of the object goes before a child module, which stays what and where it is.
        instead = [(vars(one), part, answer) for one, part, answer in self._instead if one not in but]
        for attributes, part, answer in instead:
            attributes[part] = answer
        try:
            yield
        finally:
            for attributes, part, _ in instead:
                del attributes[part]

    def of(self, layer: nn.Module) -> Tensor:
        """[B, N, D], what `layer` gives for the text."""
        if layer not in self._known:
            found = self._rows.find(self._keys, layer)
            if found is None:
                found = layer(self._text)
                self._rows.keep(self._keys, layer, found)
            self._known[layer] = found
        return self._known[layer]

    def _instead_of(self, layer: nn.Module) -> Any:
        return lambda text: self.of(layer) if text is self._text else layer(text)
