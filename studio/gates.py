"""Gates: which adapter acts how strongly where, as data. Merging, switching, branches and regions are all gates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from studio.errors import StudioError
from studio.kernels.multi_adapter import Weights
from studio.kernels.multi_adapter_conv import Windows

Tensor = torch.Tensor


@dataclass(frozen=True)
class Gate:
    """Weights [B, k] of k adapters on B samples, times an `image` mask [B, k, H, W] over the latents and a `text` mask
    [B, k, N] over the tokens of the prompt; None stands for ones.

    Layers of the picture see the mask averaged to their own grid, layers that read the text see the text mask, and
    those that see neither (timestep, pooled text) the mean of the image mask. Where there are `layers`, endings of
    names such as "attn2.to_k", the adapters leave all others alone.
    """

    weights: Tensor
    image: Tensor | None = None
    text: Tensor | None = None
    layers: tuple[str, ...] | None = None
    told: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)
    """What it answered to layers, by what they asked."""
    _known: dict[tuple[str, tuple[int, ...]], Weights] = field(default_factory=dict, repr=False, compare=False)
    _windows: dict[tuple[int, int], Windows] = field(default_factory=dict, repr=False, compare=False)
    _parts: dict[tuple[tuple[int, ...], int], "Gate"] = field(default_factory=dict, repr=False, compare=False)
    _shared: dict[tuple[int, ...], "Gate"] = field(default_factory=dict, repr=False, compare=False)

    @property
    def samples(self) -> int:
        """B."""
        return len(self.weights)

    @cached_property
    def silent(self) -> bool:
        """Whether no adapter acts anywhere."""
        return not bool(self.weights.any())

    @cached_property
    def active(self) -> list[int]:
        """The adapters that act on any sample."""
        return self.weights.any(0).nonzero().flatten().tolist()

    @cached_property
    def acting(self) -> int:
        """How many samples, from the first, there are up to the last on which any adapter acts."""
        return int((self.weights.any(1) * torch.arange(1, self.samples + 1, device=self.weights.device)).max())

    def reaches(self, layer: str) -> bool:
        """Whether any adapter acts on the layer of that name."""
        return not self.silent and (self.layers is None or layer.endswith(self.layers))

    @cached_property
    def pattern(self) -> tuple[Any, ...]:
        """What of it layers plan by; gates that differ in numbers alone have the same."""
        return self.samples, self.acting, tuple(self.active), self.layers

    def of(self, columns: Sequence[int], samples: int | None = None) -> "Gate":
        """The gate of some of the adapters, in that order, on the first `samples` (None: all)."""
        samples = self.samples if samples is None else samples
        key = tuple(columns), samples
        if key == (tuple(range(self.weights.shape[1])), self.samples):
            return self
        if key not in self._parts:
            image, text = (None if mask is None else mask[:samples, columns] for mask in (self.image, self.text))
            self._parts[key] = Gate(self.weights[:samples, columns], image, text, self.layers)
        return self._parts[key]

    def shared(self, owners: tuple[int, ...]) -> "Gate":
        """The gate of the distinct adapters where several of k are one, `owners` [k] numbering them: it acts as the
        strongest of those does, at every place."""
        if owners not in self._shared:
            weights = strongest(self.weights, owners)

            def of(mask: Tensor | None) -> Tensor | None:
                if mask is None:
                    return None
                each = (..., *[None] * (mask.dim() - 2))
                return strongest(self.weights[each] * mask, owners) / torch.where(weights == 0, 1, weights)[each]

            self._shared[owners] = Gate(weights, of(self.image), of(self.text), self.layers)
        return self._shared[owners]

    def on_grid(self, height: int, width: int) -> Weights:
        """For the B h w pixels of a layer with that grid."""
        return self._remembered("grid", (height, width), lambda: self._pixels(height, width))

    def windows(self, height: int, width: int) -> Windows:
        """For a convolution whose output has that grid."""
        if (height, width) not in self._windows:
            dense = self.on_grid(height, width).dense
            self._windows[height, width] = Windows(dense.unflatten(0, (self.samples, height, width)))
        return self._windows[height, width]

    def on_tokens(self, count: int) -> Weights:
        """For the B N tokens of an image layer that tells only how many there are; raises StudioError for a number
        that no level of the latents has."""
        if self.image is None:
            return self.everywhere(count)
        height, width = self.image.shape[2:]
        while height * width > count and height * width > 1:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != count:
            raise StudioError(
                f"A layer has {count} image tokens; latents of {self.image.shape[2]} x {self.image.shape[3]} have no"
                " such level.",
                "This network is built unlike SD1.5 and SDXL; use a gate without an image mask.",
            )
        return self.on_grid(height, width)

    def everywhere(self, count: int) -> Weights:
        """For B N tokens that the masks do not concern."""
        return self._remembered("all", (count,), lambda: self._everywhere(count))

    def on_text(self, count: int) -> Weights:
        """For the B N tokens of the text."""
        return self._remembered("text", (count,), lambda: self._words(count))

    def on_samples(self) -> Weights:
        """For B vectors."""
        return self._remembered("samples", (), self._vectors)

    def _pixels(self, height: int, width: int) -> Tensor:
        if self.image is None:
            return self._everywhere(height * width)
        mask = F.adaptive_avg_pool2d(self.image, (height, width))
        return (self.weights[:, :, None, None] * mask).flatten(2).transpose(1, 2).flatten(0, 1)

    def _everywhere(self, count: int) -> Tensor:
        return self.weights.repeat_interleave(count, dim=0)

    def _words(self, count: int) -> Tensor:
        if self.text is None:
            return self._everywhere(count)
        if self.text.shape[2] != count:
            raise StudioError(
                f"The gate's text mask is for {self.text.shape[2]} tokens; the text has {count}.", "Make it anew."
            )
        return (self.weights[:, :, None] * self.text).transpose(1, 2).flatten(0, 1)

    def _vectors(self) -> Tensor:
        return self.weights if self.image is None else self.weights * self.image.mean((2, 3))

    def _remembered(self, kind: str, size: tuple[int, ...], make: Callable[[], Tensor]) -> Weights:
        if (kind, size) not in self._known:
            self._known[kind, size] = Weights(make())
        return self._known[kind, size]


def strongest(values: Tensor, owners: tuple[int, ...]) -> Tensor:
    """Of values [B, k, ...] of k adapters those [B, u, ...] of the distinct ones that `owners` [k] number: of several
    the one farthest from zero, elementwise."""
    parts: list[Tensor] = []
    for number in range(max(owners) + 1):
        own = values[:, [n for n, owner in enumerate(owners) if owner == number]]
        parts.append(own.gather(1, own.abs().argmax(1, keepdim=True)))
    return torch.cat(parts, 1)


def strips(count: int, rows: int, size: tuple[int, int], like: Tensor, shift: int = 0) -> Tensor:
    """An image mask [rows, count, *size] that gives each adapter an upright strip of its own; `shift` moves them on."""
    owner = (torch.arange(size[1]) * count // size[1] + shift) % count
    masks = torch.stack([(owner == n).expand(size) for n in range(count)]).to(like)
    return masks[None].expand(rows, -1, -1, -1).contiguous()
