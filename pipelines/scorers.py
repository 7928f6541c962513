"""What scores pictures of concepts: encoders on any base, judge A on the embedded one, guards on all.

Each concept is known by its pictures; those of the whole library stand by, for what it could be taken for.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import torch
from PIL import Image

from studio.detectors import Detector
from studio.encoders import Clip, Encoder
from studio.judge import Box as Sides
from studio.judge import Gallery, Judge, subject_of
from studio.metrics import Guards, clip_score, cropped, diversity, leaks, likeness, margins
from studio.picturebook import BACKGROUND_WORDS, CLASSES, Subject, distractors, sample_scenes
from studio.picturebook_draw import render
from studio.pipelines.evaluation import Scorer, Scores
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.protocols import plain
from studio.pipelines.scores import Marks, mark_places, side_by_side
from studio.regions import Box

Tensor = torch.Tensor
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Reference:
    """A concept's class word and pictures."""

    class_word: str
    pictures: tuple[Image.Image, ...]

    @property
    def id(self) -> str:
        """Of exactly these pictures."""
        digest = hashlib.sha256()
        for one in self.pictures:
            digest.update(repr(one.size).encode())
            digest.update(one.tobytes())
        return digest.hexdigest()


References = Mapping[str, Reference]


def sample_reference(subject: Subject) -> Reference:
    """What a sample concept is trained on: five true drawings."""
    return Reference(subject.kind, tuple(map(render, sample_scenes(subject, 5, seed=700))))


class Likeness(Scorer):
    """By the vectors of an encoder: `NAME-I`, how like its own pictures a concept is (the mean cosine, of several
    concepts the mean); `NAME-margin`, how much more than to those of the other most like it (the lowest of several);
    `NAME-leak`, the most by which the place of one is more like another than itself. Where a concept has a place only
    that is looked at, else where it is most itself. Of a CLIP also `CLIP-T`, how well the picture fits the prompt, and
    `diversity`.
    """

    def __init__(self, kind: str, encoder: Encoder, references: References, classes: Mapping[str, str]) -> None:
        self.name = f"{kind} {encoder.name}"
        self.kind, self.encoder, self.classes = kind, encoder, classes
        self.known = {name: encoder.images(one.pictures) for name, one in references.items()}
        self._ids = {name: one.id for name, one in references.items()}

    def made_from(self, case: Case) -> object:
        """The encoder's weights, every concept's pictures, the prompt without triggers, and the places."""
        places = None if case.places is None else [(name, box.sides) for name, box in case.places.boxes.items()]
        return self.encoder.weights, self._ids, case.names, self._text(case), places

    def __call__(self, case: Case, pictures: Sequence[Image.Image]) -> list[Scores]:
        """For each picture."""
        rows: list[Scores] = [{} for _ in pictures]
        if isinstance(self.encoder, Clip):
            whole = self.encoder.images(pictures)
            text = self.encoder.texts([self._text(case)])
            _add(rows, f"{self.kind}-T", clip_score(whole, text.expand_as(whole)))
        names = [name for name in case.names if name in self.known]
        seen = cache(lambda sides: self._part(pictures, sides))
        chosen = [self._where(name, [seen(sides) for sides in self.windows(case, name)]) for name in names]
        if names:
            own = [likeness(one, self.known[name]) for one, name in zip(chosen, names, strict=True)]
            _add(rows, f"{self.kind}-I", torch.stack(own).mean(0))
        if names and len(self.known) > 1:
            _add(rows, f"{self.kind}-margin", torch.stack(list(map(self._margin, chosen, names))).amin(0))
        if len(names) > 1 and case.places is not None:
            found = leaks(chosen, [self.known[name] for name in names])  # [n, k, k], its diagonal 0
            apart = ~torch.eye(len(names), dtype=torch.bool)
            _add(rows, f"{self.kind}-leak", found[:, apart].amax(1))
        return rows

    def windows(self, case: Case, name: str) -> list[Sides]:
        """Where a concept is looked for: in its place; else in the whole picture, and where there are several in each
        of as many columns."""
        if case.places is not None and name in case.places.boxes:
            return [case.places.boxes[name].sides]
        count = len(case.names)
        return [WHOLE, *(side_by_side(count) if count > 1 else ())]

    def beside(self, case: Case, pictures: Sequence[Image.Image], counterparts: Sequence[Image.Image]) -> list[Scores]:
        """`NAME-pair`, how like the picture of its caption each is; of what does not call a concept `NAME-drift`, how
        far it is from what the base draws."""
        rows: list[Scores] = [{} for _ in pictures]
        alike = (self.encoder.images(pictures) * self.encoder.images(counterparts)).sum(1)
        drifted = isinstance(case.counterpart, Case)
        _add(rows, f"{self.kind}-{'drift' if drifted else 'pair'}", 1 - alike if drifted else alike)
        return rows

    def together(self, case: Case, pictures: Sequence[Image.Image]) -> Scores:
        """How far apart they are."""
        return {"diversity": diversity(self.encoder.maps(pictures))} if isinstance(self.encoder, Clip) else {}

    def _text(self, case: Case) -> str:
        return plain(case.settings.prompt, self.classes)

    def _part(self, pictures: Sequence[Image.Image], sides: Sides) -> Tensor:
        return self.encoder.images([cropped(one, Box(*sides)) for one in pictures])

    def _where(self, name: str, seen: Sequence[Tensor]) -> Tensor:
        """[n, d] of windows [n, d]: each picture's in which the concept is most itself."""
        worth = self._margin if len(self.known) > 1 else lambda one, name: likeness(one, self.known[name])
        best = torch.stack([worth(one, name) for one in seen]).argmax(0)  # [n]
        return torch.stack(list(seen))[best, torch.arange(len(best))]

    def _margin(self, shown: Tensor, name: str) -> Tensor:
        return margins(shown, self.known[name], [one for other, one in self.known.items() if other != name])


class JudgeA(Scorer):
    """By the judge inside the product, for what it knows: `itself`, whether every concept is nearer to itself than to
    any other and to what differs from it in one thing, in its place, or where none is known in the best order from
    left to right; `judge-margin`, the lowest by which; `leak`, whether any place shows anything of another concept;
    `background`, whether it is the prompt's; `success`, all of these.
    """

    name = "judge A"

    def __init__(self, references: References) -> None:
        self.judge = Judge.load("A")
        self.subjects = {
            name: subject_of(self.judge, one.pictures, one.class_word)
            for name, one in references.items()
            if one.class_word in CLASSES and one.pictures
        }
        self.galleries: dict[str, Gallery] = {}

    def made_from(self, case: Case) -> object:
        """Whom it tells apart, and where."""
        places = None if case.places is None else [(name, box.sides) for name, box in case.places.boxes.items()]
        return sorted((name, repr(one)) for name, one in self.subjects.items()), case.names, places

    def __call__(self, case: Case, pictures: Sequence[Image.Image]) -> list[Scores]:
        """For each picture; nothing where a concept is none of the judge's world."""
        names = case.names
        if not names or any(name not in self.subjects for name in names):
            return [{} for _ in pictures]
        asked = background_of(case.settings.prompt)
        ways = [
            mark_places(
                self.judge, [self._gallery(name) for name in names], [self.subjects[name] for name in names],
                pictures, [(asked or "", "")] * len(pictures), places,
            )
            for places in _places(case)
        ]  # fmt: skip
        found = [[_scores_of(one, asked) for one in marks] for marks in ways]
        return [
            max(one, key=lambda scores: (scores["success"], scores["judge-margin"])) for one in zip(*found, strict=True)
        ]

    def _gallery(self, name: str) -> Gallery:
        if name not in self.galleries:
            subject = self.subjects[name]
            others = [one for one in self.subjects.values() if one != subject]
            self.galleries[name] = Gallery(self.judge, list(dict.fromkeys([subject, *others, *distractors(subject)])))
        return self.galleries[name]


class Arranged(Scorer):
    """`layout`, by a detector: how much of each place the thing there fills and how little of it stands out (the area
    shared over the area of both), the lowest of all concepts with a place. Concepts of one class share out the
    likeliest things of it as suits them best."""

    def __init__(self, detector: Detector, classes: Mapping[str, str]) -> None:
        self.name = f"layout {detector.name}"
        self.detector, self.classes = detector, classes

    def made_from(self, case: Case) -> object:
        """The detector's weights, what it looks for, and where that belongs."""
        places = {} if case.places is None else case.places.boxes
        return self.detector.weights, [(self.classes[name], box.sides) for name, box in places.items()]

    def __call__(self, case: Case, pictures: Sequence[Image.Image]) -> list[Scores]:
        """For each picture; nothing without places."""
        by_class: dict[str, list[Box]] = {}
        for name, box in ({} if case.places is None else case.places.boxes).items():
            by_class.setdefault(self.classes[name], []).append(box)
        if not by_class:
            return [{} for _ in pictures]
        return [{"layout": min(self._fit(one, words, boxes) for words, boxes in by_class.items())} for one in pictures]

    def _fit(self, picture: Image.Image, words: str, places: Sequence[Box]) -> float:
        found = self.detector.find(picture, words)[: len(places)]
        if len(found) < len(places):
            return 0.0
        return max(min(map(Box.overlap, order, places)) for order in permutations(found))


def _places(case: Case) -> list[list[Sides]]:
    """Where each concept could be: in its place; else alone anywhere; else from left to right, two or three in any
    order, more as they are named."""
    names = case.names
    boxes = {} if case.places is None else {name: box.sides for name, box in case.places.boxes.items()}
    if boxes or len(names) == 1:
        return [[boxes.get(name, WHOLE) for name in names]]
    columns = side_by_side(len(names))
    return [list(order) for order in permutations(columns)] if len(names) <= 3 else [list(columns)]


def _scores_of(marks: Marks, asked: str | None) -> Scores:
    scores: Scores = {"itself": all(marks.in_place), "judge-margin": min(marks.margins)}
    if len(marks.in_place) > 1:
        scores["leak"] = marks.leak
    if asked:
        scores["background"] = marks.background
    scores["success"] = all(marks.in_place) and not marks.leak and (marks.background or not asked)
    return {name: float(value) for name, value in scores.items()}


class Watch(Scorer):
    """`sharpness` and `saturation`, which no likeness sees."""

    name = "guards"

    def __call__(self, case: Case, pictures: Sequence[Image.Image]) -> list[Scores]:
        """For each picture."""
        return [{"sharpness": one.sharpness, "saturation": one.saturation} for one in map(Guards.of, pictures)]


def background_of(prompt: str) -> str | None:
    """The picturebook's background that `prompt` names, if any."""
    named = (value for value, wordings in BACKGROUND_WORDS.items() if any(words in prompt for words in wordings))
    return next(named, None)


def _add(rows: list[Scores], name: str, values: Tensor) -> None:
    for row, value in zip(rows, values.tolist(), strict=True):
        row[name] = value
