"""Marks, with a judge that is told what it sees."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from studio.judge import Reading
from studio.picturebook import SAMPLE_SUBJECTS, Subject
from studio.pipelines.concept_bench import FIELDS
from studio.pipelines.scores import draw_truth, mark_places, mark_singles, side_by_side

MILO, REX = SAMPLE_SUBJECTS["milo"], SAMPLE_SUBJECTS["rex"]
BLANK = Image.new("RGB", (96, 96))


def reading(subject: Subject, background: str = "night", style: str = "flat") -> Reading:
    return Reading(
        subject.kind, subject.colour, subject.second, subject.pattern, subject.accessory, subject.accent,
        background, style, (0.5, 0.5),
    )  # fmt: skip


@dataclass
class Told:
    """A judge whose answers are laid out: subjects of the whole picture, of the left and of the right half."""

    whole: list[Subject]
    halves: list[list[Subject]]
    background: str = "night"

    def look(self, images, boxes=None) -> tuple[list[Reading], Tensor]:
        seen = self.whole if boxes is None else self.halves.pop(0)
        return [reading(subject, self.background) for subject in seen], torch.stack([one_hot(s) for s in seen])

    def read(self, images, boxes=None) -> list[Reading]:
        return self.look(images, boxes)[0]


def one_hot(subject: Subject) -> Tensor:
    return torch.eye(3)[[MILO, REX].index(subject) if subject in (MILO, REX) else 2]


class TwoKnown:
    """A gallery of Milo and Rex, each its own axis."""

    subjects = (MILO, REX)

    def similarities(self, embeddings: Tensor) -> Tensor:
        return embeddings[:, :2]

    def identity(self, embeddings: Tensor, subject: Subject) -> tuple[Tensor, Tensor]:
        own = embeddings[:, self.subjects.index(subject)]
        return own > 0, own


def test_single_marks_ask_for_the_subject_the_background_and_the_style():
    judge: Any = Told([MILO, REX], [])
    gallery: Any = TwoKnown()
    marks = mark_singles(judge, gallery, MILO, [BLANK] * 2, [("night", "flat"), ("sand", "pixel")])
    assert [(m.identity, m.background, m.style) for m in marks] == [(True, True, True), (False, False, False)]


def test_every_place_is_looked_at_for_its_own():
    stained = Subject("dog", "green", "dotted", "yellow", "crown", "orange")  # Rex with Milo's pattern
    judge: Any = Told([MILO] * 3, [[MILO, REX, MILO], [REX, MILO, stained]])
    gallery: Any = TwoKnown()
    marks = mark_places(judge, (gallery, gallery), (MILO, REX), [BLANK] * 3, [("night", "flat")] * 3)
    assert [(m.in_place, m.seen, m.leak, m.success) for m in marks] == [
        ((True, True), (True, True), False, True),
        ((False, False), (True, True), True, False),
        ((True, False), (True, False), True, False),
    ]
    assert [m.margins for m in marks] == [(1, 1), (0, 0), (1, 0)]
    assert marks[1].leaks == (((), (*FIELDS, "nearer")), ((*FIELDS, "nearer"), ()))
    assert marks[2].leaks == (((), ()), (("pattern",), ()))


def test_success_needs_the_background():
    judge: Any = Told([MILO], [[MILO], [REX]])
    gallery: Any = TwoKnown()
    (mark,) = mark_places(judge, (gallery, gallery), (MILO, REX), [BLANK], [("sand", "flat")])
    assert (all(mark.in_place), mark.background, mark.success) == (True, False, False)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_places_part_the_canvas(count: int):
    places = side_by_side(count)
    assert [left for left, *_ in places] == [0, *(right for _, _, right, _ in places[:-1])]
    assert places[-1][2] == 1
    assert {(top, bottom) for _, top, _, bottom in places} == {(0, 1)}
    assert len({round(right - left, 9) for left, _, right, _ in places}) == 1


def test_true_drawings_show_the_subjects_in_their_settings():
    night, sand = draw_truth([MILO], [("night", "flat"), ("sand", "flat")], seed=3)
    assert np.asarray(night).mean() + 50 < np.asarray(sand).mean()
    assert night.size == (96, 96)
