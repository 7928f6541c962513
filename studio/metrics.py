"""What scores are, on unit vectors of pictures and texts: is it the concept, is it the prompt, is anything bleeding?

Cosines are those of the papers: CLIP-T as torchmetrics' CLIPScore has it (Hessel et al. 2021, equation 1, weight 100),
CLIP-I and DINO as in DreamBooth (Ruiz et al. 2023, section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from studio.regions import Box

Tensor = torch.Tensor


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """[n] from [n, d] and [n, d]: 100 times the cosine of each picture and its text, 0 where that is negative."""
    return 100 * (images * texts).sum(-1).clamp(min=0)


def likeness(images: Tensor, references: Tensor) -> Tensor:
    """[n] from [n, d] and [m, d]: the mean cosine of each picture to all references (CLIP-I, DINO)."""
    return (images @ references.T).mean(1)


def margins(images: Tensor, own: Tensor, others: Sequence[Tensor]) -> Tensor:
    """[n]: how much more each picture is like the references `own` than like those of the other most like it; above 0
    it is itself. Raises ValueError without others."""
    if not others:
        raise ValueError("a margin to nothing")
    return likeness(images, own) - torch.stack([likeness(images, one) for one in others]).amax(0)


def leaks(crops: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """[n, k, k] from k crops [n, d], one of each concept's place, and the concepts' references: by how much the place
    of i is more like concept j than like its own; above 0 j has leaked into it, and on the diagonal stands 0."""
    found = torch.stack([torch.stack([likeness(crop, one) for one in references], 1) for crop in crops], 1)
    return found - found.diagonal(dim1=1, dim2=2)[:, :, None]


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """[n] from feature maps [n, d, h, w] of several layers: the squared distance of unit vectors, the mean over places
    and layers (LPIPS of Zhang et al. 2018, equation 1, all weights alike)."""
    found = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        for a, b in zip(one, other, strict=True)
    ]
    return torch.stack(found).mean(0)


def diversity(maps: Sequence[Tensor]) -> float:
    """The mean distance of every two of n pictures; raises ValueError for fewer than two."""
    count = len(maps[0])
    if count < 2:
        raise ValueError("the diversity of fewer than two pictures")
    first, second = (list(side) for side in zip(*combinations(range(count), 2), strict=True))
    return float(distance([layer[first] for layer in maps], [layer[second] for layer in maps]).mean())


@dataclass(frozen=True)
class Guards:
    """What no likeness sees: `sharpness`, the variance of the Laplacian of the grey levels 0 to 255, falls when a
    picture blurs; `saturation`, the mean of HSV's S, rises when it is burnt."""

    sharpness: float
    saturation: float

    @classmethod
    def of(cls, picture: Image.Image) -> "Guards":
        """Of one picture of at least three pixels a side."""
        grey = np.asarray(picture.convert("L"), dtype=np.float64)
        edges = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
        return cls(float(edges.var()), float(np.asarray(picture.convert("HSV"))[..., 1].mean() / 255))


def cropped(picture: Image.Image, box: Box) -> Image.Image:
    """The part of `picture` in `box`, at least a pixel."""
    left, top = int(box.left * picture.width), int(box.top * picture.height)
    right, bottom = round(box.right * picture.width), round(box.bottom * picture.height)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
