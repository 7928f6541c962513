"""How concepts are told apart on a page: a letter and a colour each, never the colour alone."""

from collections.abc import Sequence
from dataclasses import dataclass

# After Okabe and Ito's palette: the eight stay apart with protan, deutan and tritan sight (tests/test_canvas.py).
COLOURS = ("#0067B0", "#F0A000", "#009E73", "#DE8CC0", "#F0E442", "#7CC8F5", "#A02C00", "#3B3B45")
INKS = ("#FFFFFF", "#161616")  # what is written on them: whichever reads better
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Mark:
    """The sign of a concept: its letter on its colour, written in `ink`."""

    name: str
    letter: str
    colour: str
    ink: str


def marks(names: Sequence[str]) -> list[Mark]:
    """A mark for each of `names`, at most 26 of them, by their order; from the ninth on colours come again."""
    colours = [COLOURS[n % len(COLOURS)] for n in range(len(names))]
    return [
        Mark(name, letter, colour, max(INKS, key=lambda ink, colour=colour: contrast(ink, colour)))
        for name, letter, colour in zip(names, LETTERS[: len(names)], colours, strict=True)
    ]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours #rrggbb as WCAG 2 defines it, 1 to 21."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
