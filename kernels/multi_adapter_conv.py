"""Many low-rank changes of one convolution: each adapter computes the window around the pixels where it acts."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F

from studio.kernels.multi_adapter import Factors, Places, Weights

Tensor = torch.Tensor
Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """A convolution's kernel, stride, padding and dilation, by height and width."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def reach(self, size: Pair) -> Pair:
        """How much of the padded input an output of `size` depends on."""
        spans = zip(size, self.stride, self.kernel, self.dilation, strict=True)
        height, width = ((length - 1) * step + (side - 1) * apart + 1 for length, step, side, apart in spans)
        return height, width


@dataclass(frozen=True)
class Windows:
    """Where k adapters act on the grid of B samples, as S windows of one size for each: weights w [B, h, w, k]."""

    dense: Tensor
    _gathers: dict[tuple[Geometry, Pair], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def few(self) -> bool:
        """Whether the windows hold at most half of what all adapters on all samples would compute."""
        samples, height, width, k = self.dense.shape
        return 2 * len(self.samples) * self.size[0] * self.size[1] <= samples * height * width and k > 0

    @cached_property
    def apart(self) -> bool:
        """Whether the samples are k runs of one length, one after the other, and each adapter acts in its own alone."""
        return len(self.dense) % max(self.dense.shape[3], 1) == 0 and Weights(self.dense.flatten(0, 2)).apart

    @cached_property
    def planes(self) -> Tensor:
        """The weights as [B, k, h, w]."""
        return self.dense.permute(0, 3, 1, 2).contiguous()

    @cached_property
    def samples(self) -> Tensor:
        """[S, k], the sample of each window; some windows may be padding, at weight zero."""
        acts = (self.dense != 0).flatten(1, 2).any(1)
        most = max(int(acts.sum(0).max()), 1)
        return acts.to(torch.uint8).argsort(dim=0, descending=True, stable=True)[:most]

    @cached_property
    def size(self) -> Pair:
        """(h', w') of the largest."""
        return tuple(max(int((last - first).max()) + 1, 1) for first, last in self._spans)  # pyright: ignore

    @property
    def tall(self) -> bool:
        """Whether windows are computed on their side: convolutions are fast along long rows."""
        return self.size[0] > self.size[1]

    @cached_property
    def corners(self) -> tuple[Tensor, Tensor]:
        """Top and left [S, k] of the windows, moved inwards where they would leave the grid."""
        top, left = (
            first.clamp(max=side - length).gather(0, self.samples)
            for (first, _), side, length in zip(self._spans, self.dense.shape[1:3], self.size, strict=True)
        )
        return top, left

    @cached_property
    def index(self) -> Tensor:
        """[S, h', w', k], or [S, w', h', k] where `tall`: the pixels of the windows among B h w."""
        _, height, width, _ = self.dense.shape
        return self._pixels(self.size, (1, 1), (height, width))

    @cached_property
    def share(self) -> Tensor:
        """What each adapter weighs at `index`; in a padding window, nothing."""
        return self.dense.flatten(0, 2).gather(0, self.index.flatten(0, 2)).unflatten(0, self.index.shape[:3])

    @cached_property
    def places(self) -> Places:
        """Of the S h' w' rows of each adapter, and a row of zeros, among the pixels."""
        index, share = (F.pad(one.flatten(0, 2).T, (0, 1)).flatten() for one in (self.index, self.share))
        return Places.of(index, share, self.dense[..., 0].numel())

    def inputs(self, geometry: Geometry, padded: Pair) -> Tensor:
        """Like `index`, the pixels of a padded input [B, *padded] that the windows depend on."""
        if (geometry, padded) not in self._gathers:
            self._gathers[geometry, padded] = self._pixels(geometry.reach(self.size), geometry.stride, padded)
        return self._gathers[geometry, padded]

    @cached_property
    def _spans(self) -> list[tuple[Tensor, Tensor]]:
        """First and last row [B, k] where an adapter acts, and column."""
        acts = self.dense != 0
        found = []
        for axis in (2, 1):
            line = acts.any(axis).int()  # [B, side, k]
            first, last = line.argmax(1), line.shape[1] - 1 - line.flip(1).argmax(1)
            found.append((first, last.where(acts.flatten(1, 2).any(1), first)))
        return found

    def _pixels(self, size: Pair, stride: Pair, grid: Pair) -> Tensor:
        top, left = self.corners
        device = self.dense.device
        rows = top[:, None] * stride[0] + torch.arange(size[0], device=device)[:, None]
        columns = left[:, None] * stride[1] + torch.arange(size[1], device=device)[:, None]
        lines = self.samples[:, None] * grid[0] + rows
        found = lines[:, :, None] * grid[1] + columns[:, None]
        return found.transpose(1, 2) if self.tall else found


def windowed(x: Tensor, factors: Factors, windows: Windows, geometry: Geometry) -> Tensor:
    """x [B, in, H, W] -> [B, out, h, w], down [k, r, in, *kernel]: windows gathered, shrunk as one grouped convolution,
    weighed, expanded."""
    k, rank = factors.down.shape[:2]
    up, left = geometry.padding
    pixels = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, up, up)).contiguous()
    index = windows.inputs(geometry, (pixels.shape[1], pixels.shape[2]))
    chosen = pixels.flatten(0, 2).index_select(0, index.flatten()).view(*index.shape[:3], -1).permute(0, 3, 1, 2)
    down, stride, dilation = factors.down.flatten(0, 1), geometry.stride, geometry.dilation
    if windows.tall:
        down, stride, dilation = down.transpose(2, 3), stride[::-1], dilation[::-1]
    hidden = F.conv2d(chosen, down, None, stride, 0, dilation, groups=k)
    hidden = hidden.permute(0, 2, 3, 1).unflatten(3, (k, rank)) * windows.share[..., None]
    hidden = F.pad(hidden.movedim(3, 0).flatten(1, 3), (0, 0, 0, 1))
    change = windows.places.sum(torch.bmm(hidden, factors.up).flatten(0, 1))
    return change.view(*windows.dense.shape[:3], -1).permute(0, 3, 1, 2)


def convolved(x: Tensor, factors: Factors, windows: Windows, geometry: Geometry) -> Tensor:
    """The same by one convolution with all adapters, where most of them act on most pixels."""
    down = factors.down.flatten(0, 1)
    hidden = F.conv2d(x, down, None, geometry.stride, geometry.padding, geometry.dilation)
    hidden = hidden.unflatten(1, factors.down.shape[:2]) * windows.planes[:, :, None]
    return _expanded(hidden.flatten(1, 2), factors.up.flatten(0, 1).expand(len(x), -1, -1))


def apart(x: Tensor, factors: Factors, windows: Windows, geometry: Geometry) -> Tensor:
    """The same where the samples are k runs of one length, in each of which its own adapter acts alone."""
    k, run = len(factors.down), len(x) // len(factors.down)
    hidden = torch.cat([
        F.conv2d(part, down, None, geometry.stride, geometry.padding, geometry.dilation)
        for part, down in zip(x.chunk(k), factors.down, strict=True)
    ])  # fmt: skip
    own = windows.planes.unflatten(0, (k, run)).diagonal(dim1=0, dim2=2)  # [run, h, w, k]
    hidden = hidden * own.movedim(3, 0).flatten(0, 1)[:, None]
    return _expanded(hidden, factors.up.repeat_interleave(run, 0))


def multi_adapter_conv(x: Tensor, factors: Factors, windows: Windows, geometry: Geometry) -> Tensor:
    """x [B, in, H, W] -> [B, out, h, w] by the cheapest of the three."""
    if windows.apart:
        return apart(x, factors, windows, geometry)
    return (windowed if windows.few else convolved)(x, factors, windows, geometry)


def _expanded(hidden: Tensor, up: Tensor) -> Tensor:
    """[B, r, h, w] and up [B, r, out] -> [B, out, h, w], written as the layer's own output is."""
    return torch.bmm(up.transpose(1, 2), hidden.flatten(2)).unflatten(2, hidden.shape[2:])
