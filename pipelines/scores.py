"""What a judge says of single pictures: of one concept in a scene, and of two side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image

from studio.judge import Gallery, Judge, Reading
from studio.picturebook import Scene, Subject
from studio.picturebook_draw import render
from studio.pipelines.base_bench import HALVES
from studio.pipelines.concept_bench import FIELDS

Setting = tuple[str, str]  # background, style


@dataclass(frozen=True)
class SingleMarks:
    """One picture of one concept: is it the concept, is it where and drawn how the prompt says?"""

    identity: bool
    background: bool
    style: bool


@dataclass(frozen=True)
class PairMarks:
    """One picture of two concepts: which of them is itself in its half, and has one taken on anything of the other?"""

    left: bool
    right: bool
    background: bool
    leak: bool

    @property
    def both(self) -> bool:
        """Whether each concept is in its place."""
        return self.left and self.right


def mark_singles(
    judge: Judge, gallery: Gallery, subject: Subject, images: Sequence[Image], settings: Sequence[Setting]
) -> list[SingleMarks]:
    """Marks of pictures that should show `subject`, each in its setting."""
    readings, embeddings = judge.look(images)
    identity = gallery.identity(embeddings, subject)[0].tolist()
    return [
        SingleMarks(own, reading.background == background, reading.style == style)
        for own, reading, (background, style) in zip(identity, readings, settings, strict=True)
    ]


def mark_pairs(
    judge: Judge,
    galleries: tuple[Gallery, Gallery],
    subjects: tuple[Subject, Subject],
    images: Sequence[Image],
    settings: Sequence[Setting],
) -> list[PairMarks]:
    """Marks of pictures that should show the first subject on the left and the second on the right."""
    whole = judge.read(images)
    in_place, leaks = [], []
    for gallery, own, other, half in zip(galleries, subjects, subjects[::-1], HALVES, strict=True):
        readings, embeddings = judge.look(images, [half] * len(images))
        in_place.append(gallery.identity(embeddings, own)[0].tolist())
        nearer = _nearer(gallery, embeddings, own, other)
        leaks.append([near or _took(r, own, other) for near, r in zip(nearer, readings, strict=True)])
    rows = zip(whole, settings, *in_place, *leaks, strict=True)
    return [
        PairMarks(left, right, seen.background == background, any(leaked))
        for seen, (background, _), left, right, *leaked in rows
    ]


def draw_truth(subjects: Sequence[Subject], settings: Sequence[Setting], seed: int) -> list[Image]:
    """True drawings of the subjects in each setting: what a judge says of them is the best that can be reached."""
    return [
        render(Scene(tuple(subjects), background, style, "big", seed + n))
        for n, (background, style) in enumerate(settings)
    ]


def _nearer(gallery: Gallery, embeddings: torch.Tensor, own: Subject, other: Subject) -> list[bool]:
    """Whether each picture is nearer to the other subject than to its own."""
    similarities = gallery.similarities(embeddings)
    a, b = (similarities[:, gallery.subjects.index(subject)] for subject in (own, other))
    return (b > a).tolist()


def _took(reading: Reading, own: Subject, other: Subject) -> bool:
    """Whether an attribute in which the two differ is read as the other's."""
    return any(getattr(reading, field) == getattr(other, field) != getattr(own, field) for field in FIELDS)
