"""The judges: small networks, trained on renders, that read a picture of the picturebook world.

Two of them, trained independently: "A" works inside the product (previews, choices), "B" only in reports, so that
nothing is scored by what chose it. Terms (identity, margin, in place, leak): docs/judge.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Literal

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from studio.errors import StudioError
from studio.picturebook import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    PATTERNS,
    SAMPLE_STYLES,
    STYLES,
    Scene,
    Subject,
    seen_as,
)  # fmt: skip
from studio.picturebook_draw import render
from studio.pixels import tensor_of

Box = tuple[float, float, float, float]  # left, top, right, bottom in fractions of the canvas
HEIGHT = 96  # pictures are read at this height, the scale of the renders that judges learn from
LEAST = 32  # pixels to a side that a net can read
EMBEDDING = 96

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": (*CLASSES, "none"),
    "colour": COLOURS,
    "second": COLOURS,
    "pattern": PATTERNS,
    "accessory": ACCESSORIES,
    "accent": COLOURS,
    "background": BACKGROUNDS,
    "style": (*STYLES, *SAMPLE_STYLES),
}


class _Plain(nn.Module):
    """Convolution, norm, ReLU, twice."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.BatchNorm2d(outside), nn.ReLU(),
            nn.Conv2d(outside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Residual(nn.Module):
    """A wide depthwise convolution and a pointwise MLP around a skip, after halving the size."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inside, outside, 2, stride=2)
        self.mix = nn.Conv2d(outside, outside, 5, padding=2, groups=outside)
        self.norm = nn.BatchNorm2d(outside)
        self.mlp = nn.Sequential(nn.Conv2d(outside, 2 * outside, 1), nn.SiLU(), nn.Conv2d(2 * outside, outside, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.mlp(self.norm(self.mix(x)))


class JudgeNet(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1], any H and W from LEAST up -> attribute logits, embedding and place."""

    def __init__(self, which: Literal["A", "B"]) -> None:
        super().__init__()
        if which == "A":
            block, widths, self.stem = _Plain, (64, 96, 128), nn.Conv2d(3, 32, 5, stride=2, padding=2)
        else:
            block, widths, self.stem = _Residual, (80, 128, 160), nn.Conv2d(3, 48, 4, stride=2, padding=1)
        sizes = (self.stem.out_channels, *widths)
        self.blocks = nn.Sequential(nn.ReLU(), *(block(a, b) for a, b in zip(sizes[:-1], widths, strict=True)))
        self.where = nn.Conv2d(widths[-1], 1, 1)
        pooled = 3 * widths[-1]
        self.mlp = nn.Sequential(nn.Linear(pooled, 192), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(values)) for name, values in ATTRIBUTES.items()})
        self.embedding = nn.Linear(192, EMBEDDING)

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """(logits by attribute, unit embedding [B, 96], place [B, 2] as x, y in fractions)."""
        features = self.blocks(self.stem(x))  # [B, C, h, w]
        weight = self.where(features).flatten(2).softmax(-1)  # [B, 1, hw]
        h, w = features.shape[2:]
        ys, xs = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        grid = torch.stack([xs.flatten(), ys.flatten()], -1).to(x)
        flat = features.flatten(2)
        pooled = torch.cat([(flat * weight).sum(-1), flat.mean(-1), flat.amax(-1)], -1)
        hidden = self.mlp(pooled)
        logits = {name: head(hidden) for name, head in self.heads.items()}
        return logits, F.normalize(self.embedding(hidden), dim=-1), weight[:, 0] @ grid


@dataclass(frozen=True)
class Reading:
    """What a judge sees in one picture or crop; `place` is the subject's middle in fractions of what it saw."""

    kind: str
    colour: str
    second: str
    pattern: str
    accessory: str
    accent: str
    background: str
    style: str
    place: tuple[float, float]

    def shows(self, subject: Subject, fields: Sequence[str] = ("kind", "colour")) -> bool:
        """Whether the named fields are the subject's."""
        return all(getattr(self, field) == getattr(subject, field) for field in fields)


def to_tensor(image: Image.Image, box: Box | None = None) -> Tensor:
    """The picture, or its part in `box`, at the judges' scale: [3, H, W] in [-1, 1], no side less than LEAST."""
    width = max(LEAST, round(image.width * HEIGHT / image.height))
    image = image.convert("RGB").resize((width, HEIGHT), Image.Resampling.BICUBIC)
    if box:
        left, right = _span(box[0], box[2], width)
        top, bottom = _span(box[1], box[3], HEIGHT)
        image = image.crop((left, top, right, bottom))
    return tensor_of([image])[0]


def _span(start: float, end: float, size: int) -> tuple[int, int]:
    """A side of a part in pixels; what is too short is widened around its middle, inside the picture."""
    first, last = round(start * size), round(end * size)
    if last - first < LEAST:
        first = min(max(0, (first + last - LEAST) // 2), size - LEAST)
        last = first + LEAST
    return first, last


class Judge:
    """A trained judge."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, which: Literal["A", "B"]) -> "Judge":
        """The shipped judge; raises StudioError where its weights are missing."""
        return cls(_load_net(which))

    @torch.no_grad()
    def look(
        self, images: Sequence[Image.Image], boxes: Sequence[Box | None] | None = None
    ) -> tuple[list[Reading], Tensor]:
        """Readings and unit embeddings [B, 96] of pictures, or of their parts in `boxes`."""
        parts = [to_tensor(i, b) for i, b in zip(images, boxes or [None] * len(images), strict=True)]
        readings: list[Reading] = []
        embeddings = [torch.empty(0, EMBEDDING)]
        for start in range(0, len(parts), 64):
            chunk = parts[start : start + 64]
            same_size = all(part.shape == chunk[0].shape for part in chunk)
            for batch in [torch.stack(chunk)] if same_size else [part[None] for part in chunk]:
                logits, embedding, place = self.net(batch)
                names = {k: [ATTRIBUTES[k][i] for i in v.argmax(-1).tolist()] for k, v in logits.items()}
                readings += [
                    Reading(**{k: v[i] for k, v in names.items()}, place=(x, y))
                    for i, (x, y) in enumerate(place.tolist())
                ]
                embeddings.append(embedding)
        return readings, torch.cat(embeddings)

    def read(self, images: Sequence[Image.Image], boxes: Sequence[Box | None] | None = None) -> list[Reading]:
        """What each picture, or its part in its box, shows."""
        return self.look(images, boxes)[0]

    def embed(self, images: Sequence[Image.Image], boxes: Sequence[Box | None] | None = None) -> Tensor:
        """Unit embeddings [B, 96] of the subjects."""
        return self.look(images, boxes)[1]


@lru_cache(maxsize=2)
def _load_net(which: Literal["A", "B"]) -> JudgeNet:
    net = JudgeNet(which)
    with as_file(files("studio.assets") / "judges" / f"{which}.safetensors") as path:
        if not path.exists():
            raise StudioError(
                f"The weights of judge {which} are missing.", "Install the studio again: they are part of it."
            )
        net.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return net


def subject_of(judge: Judge, pictures: Sequence[Image.Image], kind: str) -> Subject:
    """The subject of class `kind` that most of `pictures` show, attribute by attribute."""
    readings = judge.read(pictures)
    values = {one.name: [getattr(reading, one.name) for reading in readings] for one in fields(Subject)}
    most = {name: max(dict.fromkeys(seen), key=seen.count) for name, seen in values.items()}
    return seen_as(Subject(**most | {"kind": kind}))


def reference_scenes(subject: Subject) -> list[Scene]:
    """Eight scenes in which a judge learns what a subject looks like: all grounds, three styles."""
    grounds = ("paper", "grass", "sky", "sand", "night", "paper", "night", "grass")
    styles = ("flat", "flat", "outline", "flat", "flat", "hatched", "outline", "flat")
    return [
        Scene((subject,), ground, style, ("big", "small")[i % 2], 90_000 + i)
        for i, (ground, style) in enumerate(zip(grounds, styles, strict=True))
    ]


class Gallery:
    """Subjects a judge knows by reference pictures, to ask which of them a picture shows."""

    def __init__(self, judge: Judge, subjects: Sequence[Subject]) -> None:
        self.judge, self.subjects = judge, tuple(subjects)
        per_subject = [judge.embed([render(scene) for scene in reference_scenes(s)]) for s in self.subjects]
        self.references = F.normalize(torch.stack(per_subject).mean(1), dim=-1)  # [S, 96]

    def similarities(self, embeddings: Tensor) -> Tensor:
        """Cosine of each embedding [B, 96] to each subject: [B, S]."""
        return embeddings @ self.references.T

    def identity(self, embeddings: Tensor, subject: Subject) -> tuple[Tensor, Tensor]:
        """(is `subject` the nearest [B], margin to the best other [B])."""
        similarities = self.similarities(embeddings)
        own = self.subjects.index(subject)
        others = similarities.clone()
        others[:, own] = -2
        margin = similarities[:, own] - others.amax(-1)
        return margin > 0, margin
