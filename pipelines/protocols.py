"""What to ask of a concept so that its scores can be set beside those of papers. Torch-free.

A prompt calls its concepts as `<name>`.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product

from studio.concepts import PLACEHOLDER, Concept
from studio.regions import Box, Layout

CATEGORIES = ("character", "clothing", "style", "background", "object")  # in the order of ComposLoRA's prompts
LARGEST = len(CATEGORIES)

_SURFACES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
_PLACES = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
_CLOTHES = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf", "wearing a black top hat and a monocle",
    "in a chef outfit", "in a firefighter outfit", "in a police outfit", "wearing pink glasses",
    "wearing a yellow shirt", "in a purple wizard outfit",
)  # fmt: skip
_LOOKS = ("red", "purple", "shiny", "wet", "cube shaped")
LIVE = frozenset(("cat", "dog", "bird", "fish", "horse", "rabbit", "bear", "person", "man", "woman", "boy", "girl"))


def dreambooth(concept: Concept) -> list[str]:
    """The 25 prompts of DreamBooth's dataset (Ruiz et al. 2023, section 4.1): ten grounds, ten places more for a thing
    or ten clothes for what lives, five looks. The paper draws four pictures of each."""
    own = f"<{concept.name}>"
    further = _CLOTHES if concept.class_word in LIVE else _PLACES
    return [f"a {own} {words}" for words in (*_SURFACES, *further)] + [f"a {look} {own}" for look in _LOOKS]


def composlora_sets(by_category: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """ComposLoRA's sets of two to five (Zhong et al. 2024, section 4.1) over a library of one's own: one character and
    at most one of every other category, in the order of CATEGORIES; by size, then as the names are given."""
    others = [name for name in CATEGORIES if name != "character"]
    return [
        members
        for size in range(2, LARGEST + 1)
        for chosen in combinations(others, size - 1)
        for members in product(*(by_category.get(one, ()) for one in ("character", *chosen)))
    ]


def joined(names: Sequence[str]) -> str:
    """A set's prompt: all of it called, one after the other, as the authors join their triggers (without the words of
    praise that they put before them, which depend on the base)."""
    return ", ".join(f"<{name}>" for name in names)


def of_category(concepts: Sequence[Concept]) -> dict[str, list[str]]:
    """Names by the category that a concept's tags say; the first of CATEGORIES where they say more."""
    found: dict[str, list[str]] = {}
    for one in concepts:
        for category in CATEGORIES:
            if category in one.tags:
                found.setdefault(category, []).append(one.name)
                break
    return found


def plain(prompt: str, classes: Mapping[str, str]) -> str:
    """`prompt` as anybody would say it, each `<name>` by its class word of `classes`: what pictures are held against,
    since no encoder knows a trigger."""
    return PLACEHOLDER.sub(lambda match: classes[match[1]], prompt)


def columns(names: Sequence[str]) -> Layout:
    """Equal places from left to right."""
    count = len(names)
    return Layout({name: Box(n / count, 0.0, (n + 1) / count, 1.0) for n, name in enumerate(names)})


def in_a_row(words: Sequence[str]) -> str:
    """Things from left to right, as a prompt says it."""
    match len(words):
        case 1:
            return words[0]
        case 2:
            return f"{words[0]} on the left and {words[1]} on the right"
        case 3:
            return f"{words[0]} on the left, {words[1]} in the middle and {words[2]} on the right"
    return f"{', '.join(words[:-1])} and {words[-1]} from left to right"
