"""What a judge says of single pictures: of one concept in a scene, and of several side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image

from studio.judge import HEIGHT, Box, Gallery, Judge
from studio.picturebook import Scene, Subject
from studio.picturebook_draw import render
from studio.pipelines.concept_bench import taken

Setting = tuple[str, str]  # background, style
NEARER = "nearer"


@dataclass(frozen=True)
class SingleMarks:
    """One picture of one concept: is it the concept, is it where and drawn how the prompt says?"""

    identity: bool
    background: bool
    style: bool


@dataclass(frozen=True)
class Marks:
    """One picture of k concepts, each with a place of its own.

    Which of them is itself there, and by what margin; which is itself in any of the places; and what place i shows of
    concept j, `leaks[i][j]`: fields in which the two differ and it reads as j's, and NEARER where it looks more like j.
    """

    in_place: tuple[bool, ...]
    margins: tuple[float, ...]
    seen: tuple[bool, ...]
    leaks: tuple[tuple[tuple[str, ...], ...], ...]
    background: bool

    @property
    def leak(self) -> bool:
        """Whether any has taken on anything of another."""
        return any(fields for place in self.leaks for fields in place)

    @property
    def success(self) -> bool:
        """All in place, nothing of one in another, the prompt's background obeyed."""
        return all(self.in_place) and not self.leak and self.background


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


def side_by_side(count: int) -> tuple[Box, ...]:
    """Equal places from left to right: halves for two."""
    return tuple((n / count, 0.0, (n + 1) / count, 1.0) for n in range(count))


def mark_places(
    judge: Judge,
    galleries: Sequence[Gallery],
    subjects: Sequence[Subject],
    images: Sequence[Image],
    settings: Sequence[Setting],
    boxes: Sequence[Box] | None = None,
) -> list[Marks]:
    """Marks of pictures that should show each subject in its box, by default from left to right; each is told by a
    gallery of them all."""
    whole = judge.read(images)
    places = [judge.look(images, [place] * len(images)) for place in boxes or side_by_side(len(subjects))]
    found = [
        [gallery.identity(embeddings, own) for _, embeddings in places]
        for gallery, own in zip(galleries, subjects, strict=True)
    ]
    similar = [gallery.similarities(embeddings) for gallery, (_, embeddings) in zip(galleries, places, strict=True)]

    def shown(place: int, picture: int) -> tuple[tuple[str, ...], ...]:
        reading, near, known = places[place][0][picture], similar[place][picture], galleries[place].subjects
        own = subjects[place]
        return tuple(
            taken(reading, own, other) + (NEARER,) * bool(near[known.index(other)] > near[known.index(own)])
            for other in subjects
        )

    each = range(len(subjects))
    return [
        Marks(
            tuple(bool(found[n][n][0][i]) for n in each),
            tuple(float(found[n][n][1][i]) for n in each),
            tuple(any(bool(found[n][place][0][i]) for place in each) for n in each),
            tuple(shown(place, i) for place in each),
            reading.background == background,
        )
        for i, (reading, (background, _)) in enumerate(zip(whole, settings, strict=True))
    ]


def canvas(native: tuple[int, int], count: int) -> tuple[int, int]:
    """Width and height for `count` things side by side: a square for one or two, for more as much wider, so that each
    is as large as one of two; judges read nothing smaller."""
    return native[0] * max(count, 2) // 2, native[1]


def draw_truth(subjects: Sequence[Subject], settings: Sequence[Setting], seed: int) -> list[Image]:
    """True drawings of the subjects in each setting: what a judge says of them is the best that can be reached."""
    size = canvas((HEIGHT, HEIGHT), len(subjects))
    return [
        render(Scene(tuple(subjects), background, style, "big", seed + n), *size)
        for n, (background, style) in enumerate(settings)
    ]
