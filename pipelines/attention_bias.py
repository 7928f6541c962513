"""Who may look at what: a branch's biases on its attention, by regions of the picture."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from studio.errors import StudioError
from studio.kernels.attention import Asked
from studio.kernels.region_attention import Regions, SeenTexts
from studio.pipelines.probe import Act, grid, level_of, tap

Tensor = torch.Tensor
_TIE = 1e-4  # shares of a pixel that differ by less are the same but for rounding


@dataclass(frozen=True, eq=False)
class AttentionBias:
    """What a branch adds to its attention scores, by `regions` [r, H, W] of 0 to 1 over the latents.

    `words` [r, N] is for pixels of each region on the N tokens of the words, `cells` [H, W, N] says the same cell by
    cell; -inf hides a token, and what is in no region gets 0. Both are for rows with words, and where `always` for
    those without. From `apart` halvings of the latents on, pixels of one region do not look at those of another, with
    words or without; those of no region look and are seen everywhere. With a dimension n before them, `regions`,
    `cells` and `texts` are each picture's own.

    A pixel of a layer that covers several cells, or lies in several regions, has the mean of their factors exp(bias),
    so it sees what any of them sees; to be kept apart it is in the regions that cover most of it. Raises StudioError
    where all tokens are hidden.
    """

    regions: Tensor | None = None
    words: Tensor | None = None
    cells: Tensor | None = None
    apart: int | None = None
    always: bool = False
    texts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.regions is None and (self.words is not None or self.apart is not None):
            raise StudioError("An attention bias by regions has no regions.", "Give masks [r, H, W].")
        for bias, hidden, axis in ((self.words, -torch.inf, -1), (self.cells, -torch.inf, -1), (self.texts, 0, -3)):
            if bias is not None and bool((bias == hidden).all(axis).any()):
                raise StudioError("An attention bias hides every token.", "Leave at least one to look at.")

    @property
    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.regions, self.words, self.cells, self.texts

    @property
    def worded(self) -> bool:
        """Whether any word is looked at more or less than without it."""
        return self.texts is not None or any(one is not None and bool(one.any()) for one in (self.words, self.cells))

    @property
    def version(self) -> tuple[int, ...]:
        """Another one for another bias, and after a change in place."""
        return (id(self), *(one._version for one in self._tensors if one is not None))

    def on_words(self, picture: int, size: tuple[int, int]) -> Tensor:
        """[h w, N] for the pixels of a layer with that grid; there have to be `words` or `cells`."""
        found = []
        if self.words is not None:
            shares = self._shares(picture, size).flatten(1).T.log()
            words = F.pad(self.words.float(), (0, 0, 0, 1)).to(shares.device)  # in none of the regions: 0
            found.append((shares[:, :, None] + words).logsumexp(1))
        if self.cells is not None:
            cells = self.cells if self.cells.dim() == 3 else self.cells[picture]
            found.append(F.adaptive_avg_pool2d(cells.float().exp().movedim(2, 0), size).flatten(1).T.log())
        return torch.stack(found).sum(0)

    def on_pixels(self, picture: int, size: tuple[int, int]) -> Tensor:
        """[h w] of bits: in which regions the pixels of a layer with that grid are; of two of one region, or where one
        is in none, each sees the other."""
        shares = self._shares(picture, size).flatten(1)
        inside = shares[:-1] > shares.amax(0) - _TIE
        return (inside << torch.arange(len(inside), device=inside.device)[:, None]).sum(0)

    def on_texts(self, picture: int, size: tuple[int, int]) -> Tensor:
        """[h w, T]: which share of a pixel sees each of the texts side by side."""
        assert self.texts is not None
        texts = self.texts if self.texts.dim() == 3 else self.texts[picture]
        return F.adaptive_avg_pool2d(texts.float(), size).flatten(1).T

    def _shares(self, picture: int, size: tuple[int, int]) -> Tensor:
        """[r + 1, h, w], which sum to one: how much of a pixel is each region's, and that of none last."""
        assert self.regions is not None
        regions = (self.regions if self.regions.dim() == 3 else self.regions[picture]).float()
        total = regions.sum(0, keepdim=True)
        shares = torch.cat([regions / total.clamp(min=1), (1 - total).clamp(min=0)])
        return F.adaptive_avg_pool2d(shares, size)


@dataclass(frozen=True)
class BiasedRow:
    """A row of a batch: its bias, the picture it is of, and whether it has the words."""

    bias: AttentionBias | None
    picture: int
    worded: bool


class BatchBias:
    """The biases of the `rows` of a batch for latents of `size`, like `example` in type and place; made once for each
    grid, and zero for rows that have none."""

    def __init__(self, rows: Sequence[BiasedRow], size: tuple[int, int], example: Tensor) -> None:
        self._size, self._device, self._dtype = size, example.device, example.dtype
        self._words = [
            row.bias if row.bias and (row.worded or row.bias.always) and row.bias.worded else None for row in rows
        ]
        self._apart = [row.bias if row.bias and row.bias.apart is not None else None for row in rows]
        self._pictures = [row.picture for row in rows]
        self._known: dict[tuple[str, tuple[int, int], tuple[bool, ...]], Any] = {}
        self._taps: list[tuple[str, torch.nn.Module, Act]] | None = None

    @contextmanager
    def over(self, unet: torch.nn.Module, but: Collection[torch.nn.Module] = ()) -> Iterator[None]:
        """Add them in the forwards of `unet` in this block, always the same one; layers that no row has a bias for are
        not touched, nor those that get it otherwise (`but`)."""
        if self._taps is None:
            self._taps = list(self._wanted(unet)) if any(self._words) or any(self._apart) else []
        with ExitStack() as undo:
            for name, module, act in self._taps:
                if module not in but:
                    tap(name, module, act, undo)
            yield

    @property
    def simple(self) -> bool:
        """Whether it is no more than what `on_words` gives."""
        return not any(self._apart) and all(one is None or one.texts is None for one in self._words)

    def on_words(self, size: tuple[int, int], keys: int) -> Tensor | None:
        """[B, 1, pixels, keys], what is added to the scores of layers of that grid that read the text."""
        if not any(self._words):
            return None
        make = partial(self._stacked, size, self._words, size[0] * size[1], keys)
        return self._made("attn2", size, self._words, make)

    def _wanted(self, unet: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, Act]]:
        """Attention layers for which some row has a bias, and what adds it."""
        for name, module in unet.named_modules():
            kind = name[-5:]
            if kind in ("attn1", "attn2"):
                acting = self._words if kind == "attn2" else self._kept_apart(level_of(unet, name))
                if any(acting):
                    yield name, module, partial(self._add, kind, grid(unet, name, self._size), acting)

    def _kept_apart(self, level: int) -> list[AttentionBias | None]:
        return [one if one and one.apart is not None and one.apart <= level else None for one in self._apart]

    def _add(self, kind: str, size: tuple[int, int], acting: Sequence[AttentionBias | None], asked: Asked) -> None:
        pixels, keys = asked.query.shape[2], asked.key.shape[2]
        if kind == "attn1":
            asked.regions = self._made(kind, size, acting, lambda: self._regions(size, acting, pixels))
            return
        if any(one and one.texts is not None for one in acting):
            asked.texts = self._made("texts", size, acting, lambda: self._texts(size, acting, pixels))
        if any(one and (one.words is not None or one.cells is not None) for one in acting):
            bias = self._made(kind, size, acting, lambda: self._stacked(size, acting, pixels, keys))
            asked.bias = bias if asked.bias is None else bias + asked.bias

    def _made(
        self, kind: str, size: tuple[int, int], acting: Sequence[AttentionBias | None], make: Callable[[], Any]
    ) -> Any:
        known = (kind, size, tuple(one is not None for one in acting))
        if known not in self._known:
            self._known[known] = make()
        return self._known[known]

    def _regions(self, size: tuple[int, int], acting: Sequence[AttentionBias | None], pixels: int) -> Regions:
        bits = torch.zeros(len(acting), pixels, dtype=torch.long, device=self._device)
        for row, one in enumerate(acting):
            if one is not None:
                bits[row] = _checked(one.on_pixels(self._pictures[row], size), (pixels,))
        return Regions(bits)

    def _texts(self, size: tuple[int, int], acting: Sequence[AttentionBias | None], pixels: int) -> SeenTexts:
        count = next(one.texts.shape[-3] for one in acting if one and one.texts is not None)
        share = torch.ones(len(acting), pixels, count, device=self._device)
        for row, one in enumerate(acting):
            if one is not None and one.texts is not None:
                share[row] = _checked(one.on_texts(self._pictures[row], size), (pixels, count))
        return SeenTexts(share)

    def _stacked(self, size: tuple[int, int], acting: Sequence[AttentionBias | None], pixels: int, keys: int) -> Tensor:
        """[B, 1, pixels, keys]."""
        stacked = torch.zeros(len(acting), 1, pixels, keys, device=self._device, dtype=self._dtype)
        for row, one in enumerate(acting):
            if one is not None and (one.words is not None or one.cells is not None):
                stacked[row, 0] = _checked(one.on_words(self._pictures[row], size), (pixels, keys)).to(stacked)
        return stacked


def _checked(found: Tensor, shape: tuple[int, ...]) -> Tensor:
    if found.shape != shape:
        raise StudioError(
            f"An attention bias is for {list(found.shape)} pixels and keys; a layer has {list(shape)}.",
            "Make it for the tokens of the text that the branch reads.",
        )
    return found
