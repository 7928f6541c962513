"""Losses that bring concepts into boxes, of attention maps (Yang et al. 2024, "LoRA-Composer", equations 5 to 9)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from studio.regions import Box, Layout

Tensor = torch.Tensor
# The authors' blur, exp(-(d / 2 sigma)^2) with sigma 0.5: corner, edge, centre.
_BLUR = torch.tensor([[2.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 2.0]]).neg().exp()


@dataclass(frozen=True)
class Place:
    """A concept's part of a grid: the cells that it `owns` [h, w], zeros and ones, and the box they lie in."""

    owns: Tensor
    rows: slice
    columns: slice

    @property
    def bell(self) -> Tensor:
        """[h, w]: a Gaussian over the box, 1 at its middle, on the cells that are owned (equation 5's G)."""
        shape = (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)
        y, x = (torch.linspace(-1, 1, side, dtype=self.owns.dtype, device=self.owns.device) for side in shape)
        bell = (-(y[:, None].square() + x.square()) / 2).exp()
        whole = torch.zeros_like(self.owns)
        whole[self.rows, self.columns] = bell / bell.max()
        return whole * self.owns


def places(layout: Layout, names: list[str], size: tuple[int, int]) -> list[Place]:
    """Of each concept on a grid of that size; raises UsageError for boxes too small for it, or covered."""
    boxes: list[Box] = [layout.boxes[name] for name in names]
    return [Place(owns, *box.cells(*size)) for owns, box in zip(layout.masks(names, *size), boxes, strict=True)]


def blurred(maps: Tensor) -> Tensor:
    """[..., h, w], each cell with its neighbours; flat maps stay as they are."""
    kernel = (_BLUR / _BLUR.sum()).to(maps)[None, None]
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.conv2d(F.pad(flat, (1, 1, 1, 1), "reflect"), kernel).reshape(maps.shape)


def missing(maps: Tensor, place: Place, share: float) -> Tensor:
    """1 - the mean of the strongest `share` of the owned cells, weighed by the bell (concept enhancement): [..., h, w]
    -> [...]."""
    return (1 - _strongest((maps * place.bell).flatten(-2), share, int(place.owns.sum()))).clamp(min=0)


def unfilled(maps: Tensor, place: Place) -> Tensor:
    """How far the greatest of each column and row is from 1 in the box, from 0 outside: [..., h, w] -> [...]."""
    inside = maps * place.owns
    return sum(
        ((inside.amax(along) - place.owns.amax(along)).abs().mean(-1) for along in (-2, -1)),
        start=maps.new_zeros(()),
    )


def straying(looks: Tensor, place: Place, share: float) -> Tensor:
    """The mean of the strongest looks of the owned cells at others, as many as `share` of the owned cells: [n, h w,
    h w] -> [n]; zero where nothing else is there."""
    owned = place.owns.flatten().bool()
    outside = looks[:, owned][:, :, ~owned].flatten(1)
    if not outside.shape[1]:
        return looks.new_zeros(len(looks))
    return _strongest(outside, share, int(owned.sum()))


def _strongest(values: Tensor, share: float, cells: int) -> Tensor:
    """The mean of the greatest values, as many as that share of `cells`, but at least one."""
    count = min(max(1, int(share * cells)), values.shape[-1])
    return values.topk(count).values.mean(-1)
