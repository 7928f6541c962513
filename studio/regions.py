"""Places for concepts on the canvas: boxes in fractions of its sides, and their masks on any grid."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import UsageError

if TYPE_CHECKING:
    import torch

_WRITE = "Write NAME=LEFT,TOP,RIGHT,BOTTOM in fractions of the canvas, as in milo=0,0.2,0.5,1."


@dataclass(frozen=True)
class Box:
    """A rectangle in fractions of the canvas, from its upper left; raises UsageError for one that cannot be."""

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        sides = self.sides
        if not all(math.isfinite(side) for side in sides):
            raise UsageError(f"The box {sides} holds something else than numbers.", _WRITE)
        if not all(0 <= side <= 1 for side in sides):
            raise UsageError(f"The box {sides} reaches beyond the canvas, which is 0 to 1.", _WRITE)
        if self.left >= self.right or self.top >= self.bottom:
            raise UsageError(f"The box {sides} is empty or upside down.", _WRITE)

    @property
    def sides(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    def meets(self, other: "Box") -> bool:
        """Whether the two share more than an edge."""
        beside = self.right <= other.left or other.right <= self.left
        return not beside and self.top < other.bottom and other.top < self.bottom

    def overlap(self, other: "Box") -> float:
        """The area that both share over that which either covers."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        shared = max(width, 0.0) * max(height, 0.0)
        areas = [(one.right - one.left) * (one.bottom - one.top) for one in (self, other)]
        return shared / (sum(areas) - shared)

    def cells(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a grid whose cells have their centre in the box.

        Raises UsageError for a box too small to hold one.
        """
        rows = slice(math.ceil(self.top * height - 0.5), math.ceil(self.bottom * height - 0.5))
        columns = slice(math.ceil(self.left * width - 0.5), math.ceil(self.right * width - 0.5))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            raise UsageError(
                f"The box {self.left:g},{self.top:g},{self.right:g},{self.bottom:g} is smaller than a cell of the"
                f" {width} x {height} grid.",
                "Make it larger, or the picture.",
            )
        return rows, columns


@dataclass(frozen=True)
class Layout:
    """Boxes by concept. Where boxes overlap, the later one is in front."""

    boxes: dict[str, Box]

    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs (behind, in front) of names whose boxes share ground."""
        placed = list(self.boxes.items())
        return [(a, b) for n, (a, box) in enumerate(placed) for b, other in placed[n + 1 :] if box.meets(other)]

    def masks(self, names: list[str], height: int, width: int) -> "torch.Tensor":
        """[k, height, width] of zeros and ones: the cells that each of `names` owns, at most one owner a cell.

        A name without a box owns nothing. Raises UsageError where a box is smaller than a cell, or wholly covered.
        """
        import torch

        masks = torch.zeros(len(names), height, width)
        for name, box in self.boxes.items():
            rows, columns = box.cells(height, width)
            masks[:, rows, columns] = 0
            masks[names.index(name), rows, columns] = 1
        for name in self.boxes:
            if not masks[names.index(name)].any():
                raise UsageError(f"The box of <{name}> is wholly covered by others.", "Move it, or give it later.")
        return masks


def parse_box(text: str) -> tuple[str, Box]:
    """(name, box) of "milo=0,0.2,0.5,1"; raises UsageError."""
    name, given, numbers = text.partition("=")
    try:
        sides = [float(number) for number in numbers.split(",")]
    except ValueError:
        sides = []
    if not given or not name or len(sides) != 4:
        raise UsageError(f"--box {text} is no box.", _WRITE)
    return name, Box(*sides)


def read_layout(path: Path) -> Layout:
    """The boxes of a JSON file {"milo": [left, top, right, bottom], ...}; raises UsageError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UsageError(f"Cannot read the layout {path}: {error.strerror}.", "Check the path given.") from error
    except ValueError as error:
        raise UsageError(f"The layout {path} is no JSON: {error}.", "Correct the place named.") from error
    return layout_of(content, f"The layout {path}")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"The layout has more than one box for {twice[0]!r}.", "Give each concept one box.")
    return dict(pairs)


def layout_of(content: object, what: str) -> Layout:
    """The layout that JSON `content` describes; raises UsageError, naming `what` it is."""
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{what} names no box.", 'It is an object such as {"milo": [0, 0.2, 0.5, 1]}.')
    boxes = {}
    for name, sides in content.items():
        numbers = isinstance(sides, list) and all(isinstance(one, int | float) for one in sides)
        if not numbers or len(sides) != 4:
            raise UsageError(f"{what}: the box of {name!r} is {sides!r}.", "Give [left, top, right, bottom] of 0 to 1.")
        boxes[str(name)] = Box(*map(float, sides))
    return Layout(boxes)
