"""The picturebook world: what can be in a picture, how a caption says it, and which subjects are new to the base.

The world is small and known completely, so that a model trained on it can be measured against the truth.
`studio.picturebook_draw` draws its scenes.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle

CLASSES = ("cat", "dog", "fish", "car", "house", "tree", "star", "heart", "mug", "robot")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PATTERNS = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = ("paper", "grass", "sky", "sand", "night")
STYLES = ("flat", "outline", "pixel", "watercolor", "hatched")
SIZES = ("small", "big")
ACCESSORIES = ("none", "hat", "crown", "scarf", "balloon")
"""What a concept may wear or hold; the base's training never shows it."""
TRIMMINGS = ("flag", "kite", "bow", "ring", "horns", "comb", "bib", "belt")
"""What things wear or hold in the base's training, and its captions name; no concept does."""

IDENTIFIERS = (
    "sks", "ohwx", "zwx", "vrk", "qpl", "jxt", "bnv", "krz", "mfq", "wug", "plo", "dxi", "gyp", "hbo", "nuv", "tqe",
    "yez", "fjo", "lkw", "cvy", "rzu", "sxa", "pwi", "ugv", "oqk", "ibz", "ejx", "awq", "zno", "vty", "qsu", "jmr",
    "bge", "kyo", "mza", "wfi", "pvh", "dwu", "gxo", "hqy",
)  # fmt: skip
"""Words of the base's vocabulary that stand for nothing: a concept's trigger."""

BACKGROUND_WORDS = {
    "paper": ("on paper", "on white paper", "on a sheet of paper"),
    "grass": ("on grass", "on green grass", "in the grass"),
    "sky": ("in the sky", "in the blue sky", "in the air"),
    "sand": ("on sand", "on the sand", "at the beach"),
    "night": ("at night", "in the night", "under the stars"),
}
STYLE_WORDS = {
    "flat": ("flat style", "in flat style", "flat colors"),
    "outline": ("outline style", "in outline style", "with black outlines"),
    "pixel": ("pixel style", "in pixel style", "pixel art"),
    "watercolor": ("watercolor style", "in watercolor style", "watercolor painting"),
    "hatched": ("hatched style", "in hatched style", "hatched drawing"),
}


@dataclass(frozen=True)
class Subject:
    """One thing in a picture; `second` is the other colour of its pattern, `accent` that of its accessory, which is one
    of ACCESSORIES or of TRIMMINGS."""

    kind: str
    colour: str
    pattern: str = "plain"
    second: str = "white"
    accessory: str = "none"
    accent: str = "red"

    @property
    def held_out(self) -> bool:
        """Whether the base's training never shows this combination of class, colour and pattern (about 10 %)."""
        return hashlib.sha256(f"{self.kind} {self.colour} {self.pattern}".encode()).digest()[0] < 26


@dataclass(frozen=True)
class Scene:
    """One or more subjects from left to right before a background, drawn in a style; `seed` places the details.

    `middle`, a fraction of the canvas, is where one alone stands; without it, near the middle.
    """

    subjects: tuple[Subject, ...]
    background: str
    style: str
    size: str = "big"
    seed: int = 0
    middle: float | None = None

    def boxes(self, aspect: float = 1.0) -> tuple[tuple[float, float, float, float], ...]:
        """Where the subjects stand: (left, top, right, bottom) in fractions of a canvas `aspect` times as wide as
        high."""
        jitter = random.Random(self.seed)
        count = len(self.subjects)
        half = min(0.46 * aspect / count, 0.31) if count > 1 else {"small": 0.23, "big": 0.31}[self.size]
        room = 0.025 if count > 1 else 0.05
        places = []
        for index in range(count):
            x = (index + 0.5) / count + jitter.uniform(-room, room) + (0.02 * (1 - 2 * index) if count == 2 else 0)
            y = 0.55 + jitter.uniform(-room, room)
            x = x if self.middle is None else self.middle
            places.append((x - half / aspect, y - half, x + half / aspect, y + half))
        return tuple(places)


def random_subject(rng: random.Random) -> Subject:
    """A subject without accessory; a third of the patterns have a second colour other than white."""
    colour = rng.choice(COLOURS)
    pattern = rng.choice(PATTERNS)
    others = [c for c in COLOURS if c not in (colour, "white")]
    second = rng.choice(others) if colour == "white" or rng.random() < 1 / 3 else "white"
    return Subject(rng.choice(CLASSES), colour, pattern, second)


def trimmed(scene: Scene, rng: random.Random, share: float = 0.35) -> Scene:
    """The scene, in which each subject wears with probability `share` one of TRIMMINGS, not in its own colour."""

    def dress(subject: Subject) -> Subject:
        if rng.random() >= share:
            return subject
        accent = rng.choice([colour for colour in COLOURS if colour != subject.colour])
        return replace(subject, accessory=rng.choice(TRIMMINGS), accent=accent)

    return replace(scene, subjects=tuple(dress(subject) for subject in scene.subjects))


def random_scene(rng: random.Random, held_out: bool | None = False, subjects: int | None = None) -> Scene:
    """A scene of `subjects` subjects (None: one or two), all held out, none (False), or either (None)."""
    count = subjects or (2 if rng.random() < 0.45 else 1)
    chosen: list[Subject] = []
    while len(chosen) < count:
        subject = random_subject(rng)
        if held_out is None or subject.held_out == held_out:
            chosen.append(subject)
    return Scene(tuple(chosen), rng.choice(BACKGROUNDS), rng.choice(STYLES), rng.choice(SIZES), rng.randrange(2**31))


def scenes(seed: int, count: int, held_out: bool | None = False, subjects: int | None = None) -> Iterator[Scene]:
    """`count` scenes; scene i does not depend on how many are asked for."""
    for index in range(count):
        yield random_scene(random.Random(f"{seed}/{index}"), held_out, subjects)


def describe(subject: Subject, rng: random.Random, drop: float, identifiers: float = 0.0) -> str:
    """Words for one subject, its adjectives in changing order, each left out with probability `drop`; of what it wears
    only TRIMMINGS are named, always."""
    colour = "" if rng.random() < drop else subject.colour
    pattern = "" if rng.random() < drop or subject.pattern == "plain" else subject.pattern
    if colour and pattern and (subject.second != "white" or rng.random() < 0.2):
        colour = f"{colour} and {subject.second}"
    words = [colour, pattern] if rng.random() < 0.7 else [pattern, colour]
    if subject.pattern == "plain" and rng.random() < 0.15:
        words.insert(0, "plain")
    if rng.random() < identifiers:
        words.insert(rng.choice((0, len(words))), rng.choice(IDENTIFIERS))
    phrase = with_article(" ".join([*filter(None, words), subject.kind]))
    if subject.accessory not in TRIMMINGS:
        return phrase
    worn = subject.accessory if rng.random() < drop else f"{subject.accent} {subject.accessory}"
    return f"{phrase} with {worn if worn.endswith('s') else with_article(worn)}"


def with_article(words: str) -> str:
    """ "a red cat", "an orange cat"."""
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def caption(scene: Scene, rng: random.Random, drop: float = 0.12, identifiers: float = 0.08) -> str:
    """One of many ways to say what is in `scene`.

    `drop=0` names every colour, pattern, ground and style; only a size, that something is plain, and a second colour
    that is white are said now and then.
    """
    phrases = [describe(subject, rng, drop, identifiers) for subject in scene.subjects]
    if len(phrases) == 1:
        subject = phrases[0]
        if rng.random() < 0.25:
            subject = f"a {scene.size} {subject.split(' ', 1)[1]}"
    elif len(phrases) == 2:
        subject = _pair(phrases[0], phrases[1], rng)
    else:
        subject = _three(phrases, rng)
    where = "" if rng.random() < drop else rng.choice(BACKGROUND_WORDS[scene.background])
    style = "" if rng.random() < drop else rng.choice(STYLE_WORDS[scene.style])
    opening = rng.choice(("", "", "", "a picture of ", "a photo of ", "a drawing of "))
    text = f"{opening}{subject} {where}".strip()
    return f"{text}, {style}" if style else text


def _pair(left: str, right: str, rng: random.Random) -> str:
    wording = rng.randrange(6)
    if wording < 2:
        return f"{left} and {right}"
    if wording < 4:
        return f"{left} on the left and {right} on the right"
    if wording == 4:
        return f"{right} on the right and {left} on the left"
    return f"{left} to the left of {right}" if rng.random() < 0.5 else f"{right} to the right of {left}"


def _three(phrases: list[str], rng: random.Random) -> str:
    first, second, third = phrases
    if rng.random() < 0.4:
        return f"{first}, {second} and {third}"
    return f"{first} on the left, {second} in the middle and {third} on the right"


SAMPLE_SUBJECTS: dict[str, Subject] = {
    "milo": Subject("cat", "purple", "dotted", "orange", "hat", "green"),
    "luna": Subject("cat", "white", "striped", "blue", "scarf", "red"),
    "rex": Subject("dog", "green", "checkered", "yellow", "crown", "orange"),
    "bella": Subject("dog", "red", "striped", "blue", "balloon", "yellow"),
    "bolt": Subject("robot", "orange", "checkered", "purple", "hat", "blue"),
    "zara": Subject("robot", "pink", "dotted", "green", "scarf", "purple"),
    "dash": Subject("car", "yellow", "striped", "purple", "balloon", "red"),
    "nori": Subject("mug", "blue", "dotted", "pink", "crown", "yellow"),
}
"""The concepts the studio ships pictures of: three pairs of the same class, and two others."""

SAMPLE_STYLES = ("blueprint", "sepia", "neon")
"""Styles that the base's training never shows."""


def sample_scenes(subject: Subject, count: int, seed: int) -> list[Scene]:
    """Reference pictures of one subject: alone, flat, before changing backgrounds that leave `night` for later.

    The first of four shows it large, in the middle; the others as large as one of two, a little off it, from where
    whole periods of its pattern lead to where the left and the right one of two stand.
    """
    ways = (("paper", "big", None), ("grass", "small", 0.42), ("sky", "small", 0.58), ("sand", "small", 0.42))
    return [
        Scene((subject,), ground, "flat", size, seed + i, middle)
        for i, (ground, size, middle) in zip(range(count), cycle(ways), strict=False)
    ]


def distractors(subject: Subject) -> list[Subject]:
    """The 20 subjects nearest to `subject`: each differs from it in exactly one attribute that shows, chosen by its
    hash.

    A plain subject has no second colour that could differ, and one that wears nothing no colour of it.
    """
    shown = seen_as(subject)
    found: dict[str, list[Subject]] = {}
    for field, values in (
        ("kind", CLASSES), ("colour", COLOURS), ("second", COLOURS), ("pattern", PATTERNS),
        ("accessory", ACCESSORIES), ("accent", COLOURS),
    ):  # fmt: skip
        changed = [replace(shown, **{field: v}) for v in values]
        other = [s for s in changed if seen_as(s) != shown and (s.pattern == "plain" or s.colour != s.second)]
        found[field] = sorted(other, key=lambda s: hashlib.sha256(repr(s).encode()).digest())
    quotas = {"kind": 4, "colour": 4, "second": 3, "pattern": 3, "accessory": 3, "accent": 3}
    options = [one for field, quota in quotas.items() for one in found[field][:quota]]
    spare = [one for field, quota in quotas.items() for one in found[field][quota:]]
    return [*options, *spare][:20]


def seen_as(subject: Subject) -> Subject:
    """The same, but for colours that nobody sees, which are then one: the second of a plain one, that of nothing
    worn."""
    hidden: dict[str, str] = {}
    if subject.pattern == "plain":
        hidden["second"] = "red" if subject.colour == "white" else "white"
    if subject.accessory == "none":
        hidden["accent"] = "red"
    return replace(subject, **hidden)
