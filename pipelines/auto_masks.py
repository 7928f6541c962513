"""Whose is which part of a picture? Read from where it looks at the words, and from which parts are alike.

After FreeFuse (Liu et al. 2025, "FreeFuse: Multi-Subject LoRA Fusion via Adaptive Token-Level Routing at Test Time").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
_SHARPNESS, _MOMENTUM = 10.0, 0.2  # of votes: the score that counts as certain is a tenth; what they keep of the last


@dataclass(frozen=True)
class AutoMasks:
    """How masks are made of attention [n, k, h, w] to the words of k concepts, and of features [n, h w, D] of layers.

    A concept's anchors are the share `anchors` of the pixels that look most at its words, and least at others'. A score
    of 0 to 1 says how much a pixel looks at them or, by the share `likeness`, how alike it is to the anchors; the
    background's is what the best of these leaves, times `ground`. Then pixels contend in `rounds`: a score gains up to
    `smooth` from the votes around it, and a concept's loses `gather` times the squared distance from the middle of its
    votes, in sides of the canvas. A concept that wins nothing has its anchors. At last masks grow by `margin` pixels
    over the background, since what is drawn may outgrow what the base had in mind.
    """

    anchors: float = 0.1
    likeness: float = 0.75
    ground: float = 0.95
    rounds: int = 15
    smooth: float = 0.4
    gather: float = 0.3
    margin: int = 1

    def __call__(self, words: Tensor, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """[n, k + 1, H, W] of zeros and ones that sum to one, the background last, for latents of `size`."""
        anchors = self._most(contrasted(words))
        scores = self._scores(words, features, anchors)
        owners = contended(scores, self.rounds, self.smooth, self.gather).argmax(1)
        for picture, concept in torch.cartesian_prod(torch.arange(len(words)), torch.arange(words.shape[1])).tolist():
            if not (owners[picture] == concept).any():
                owners[picture].view(-1)[anchors[picture, concept]] = concept
        masks = F.one_hot(owners, scores.shape[1]).movedim(3, 1).to(words.dtype)
        for _ in range(self.margin):
            masks = grown(masks, scores)
        owners = F.interpolate(masks, size, mode="bilinear").argmax(1)
        return F.one_hot(owners, scores.shape[1]).movedim(3, 1).to(words.dtype)

    def _most(self, maps: Tensor) -> Tensor:
        """Indices [n, k, a] of the highest pixels."""
        return maps.flatten(2).topk(max(1, round(self.anchors * maps[0, 0].numel())), dim=2).indices

    def _scores(self, words: Tensor, features: Sequence[Tensor], anchors: Tensor) -> Tensor:
        flat = words.flatten(2)
        top = flat.gather(2, anchors).mean(2, keepdim=True)
        looked = (flat / top.clamp(min=torch.finfo(flat.dtype).tiny)).clamp(max=1)
        left = 1 - looked.amax(1, keepdim=True)
        scores = torch.cat([looked, left], 1)
        if features and self.likeness:
            grounds = self._most(left.unflatten(2, words.shape[2:]))
            alike = torch.stack([likeness(one, torch.cat([anchors, grounds], 1)) for one in features]).mean(0)
            scores = torch.lerp(scores, alike.to(scores.dtype), self.likeness)
        scores[:, -1] *= self.ground
        return scores.unflatten(2, words.shape[2:])


def contrasted(words: Tensor) -> Tensor:
    """Each map [n, k, h, w] as shares of its sum, k times that less those of the others."""
    shares = words / words.sum((2, 3), keepdim=True).clamp(min=torch.finfo(words.dtype).tiny)
    return (words.shape[1] + 1) * shares - shares.sum(1, keepdim=True)


def likeness(features: Tensor, anchors: Tensor) -> Tensor:
    """[n, k, P] of 0 to 1: the cosine of features [n, P, D] to those at `anchors` [n, k, a], mean and stretched."""
    unit = F.normalize(features, dim=2)
    chosen = unit.gather(1, anchors.flatten(1)[:, :, None].expand(-1, -1, unit.shape[2])).unflatten(
        1, anchors.shape[1:]
    )
    alike = chosen.mean(2) @ unit.transpose(1, 2)
    low, high = alike.amin(2, keepdim=True), alike.amax(2, keepdim=True)
    return (alike - low) / (high - low).clamp(min=torch.finfo(alike.dtype).tiny)


def contended(scores: Tensor, rounds: int, smooth: float, gather: float) -> Tensor:
    """Scores [n, k + 1, h, w] after `rounds` of votes; the last, the background's, is nowhere in particular."""
    height, width = scores.shape[2:]
    places = torch.meshgrid(
        torch.arange(height, device=scores.device) / height, torch.arange(width, device=scores.device) / width,
        indexing="ij",
    )  # fmt: skip
    found, votes = scores, (scores * _SHARPNESS).softmax(1)
    for _ in range(rounds):
        votes = torch.lerp((found * _SHARPNESS).softmax(1), votes, _MOMENTUM)
        around = F.avg_pool2d(votes, 3, 1, 1, count_include_pad=False)
        mass = votes.sum((2, 3), keepdim=True)
        away = sum((one - (votes * one).sum((2, 3), keepdim=True) / mass).square() for one in places)
        assert isinstance(away, Tensor)
        found = scores + smooth * around
        found[:, :-1] -= gather * away[:, :-1]
    return found


def grown(masks: Tensor, scores: Tensor) -> Tensor:
    """Masks [n, k + 1, h, w] whose concepts take the pixels of the background that touch them; where several do, the
    one of the best score."""
    touched = F.max_pool2d(masks[:, :-1], 3, 1, 1) * masks[:, -1:]
    best = scores[:, :-1].masked_fill(touched == 0, -torch.inf).argmax(1)
    taken = F.one_hot(best, masks.shape[1] - 1).movedim(3, 1) * touched
    return torch.cat([masks[:, :-1] + taken, masks[:, -1:] - taken.sum(1, keepdim=True)], 1)


def territories(masks: Tensor) -> Tensor:
    """[n, k, H, W] of zeros and ones that sum to one: every pixel belongs to the mask of [n, k, H, W] that is nearest,
    each taken for a disc of its area around its middle (a power diagram, Aurenhammer 1987).

    Along either axis distance counts by how far apart the middles lie on it: between things abreast the line is upright
    though one is lower, and what is above it stays its own.
    """
    height, width = masks.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=masks.device) + 0.5, torch.arange(width, device=masks.device) + 0.5, indexing="ij"
    )
    mass = masks.sum((2, 3), keepdim=True).clamp(min=1)
    middles = [(masks * one).sum((2, 3), keepdim=True) / mass for one in (y, x)]  # [n, k, 1, 1]
    spread = torch.stack([one.var(1, correction=0, keepdim=True) for one in middles])
    along = spread / spread.amax(0).clamp(min=1e-6)
    off = sum(share * (one - middle).square() for share, one, middle in zip(along, (y, x), middles, strict=True))
    return F.one_hot((off - mass / math.pi).argmin(1), masks.shape[1]).movedim(3, 1).to(masks.dtype)


def bands(ground: Tensor, order: Sequence[int]) -> Tensor:
    """[n, k, H, W]: what is not background [n, H, W] in vertical bands of equal area, from left to right for the k
    concepts by `order`."""
    free = 1 - ground
    columns = free.sum(1)  # [n, W]
    total = columns.sum(1, keepdim=True).clamp(min=1)
    middles = (columns.cumsum(1) - columns / 2) / total
    owner = (middles * len(order)).long().clamp(max=len(order) - 1)  # [n, W]
    rank = torch.tensor(order).argsort().argsort()
    chosen = owner[:, None] == rank.to(owner.device)[None, :, None]  # [n, k, W]
    return free[:, None] * chosen[:, :, None].to(free.dtype)
