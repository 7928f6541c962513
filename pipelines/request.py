"""What is asked of a composition: what cannot be meant, and what the user should know. Torch-free."""

from collections import Counter
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from studio.concepts import Concept
from studio.errors import UsageError
from studio.pipelines.settings import GenerateSettings
from studio.regions import Layout
from studio.spans import spell

if TYPE_CHECKING:
    from studio.models import BaseModel

LIMIT = 8
PERIOD = 5  # steps of a turn, as Zhong et al. (2024) switch


def check_request(
    settings: GenerateSettings,
    concepts: Sequence[tuple[Concept, float]],
    layout: Layout | None,
    styles: Sequence[tuple[Concept, float]] = (),
) -> None:
    """Raise UsageError for what no method can compose; nothing is loaded for it."""
    names = [concept.name for concept, _ in concepts]
    everyone = [*concepts, *styles]
    places = spell(settings.prompt, [concept for concept, _ in everyone]).places
    if not everyone:
        raise UsageError("There is no concept to compose.", "Name one or more with <NAME> in the prompt or --concept.")
    if len(everyone) > LIMIT:
        raise UsageError(f"{len(everyone)} concepts are too many for one picture.", f"Use at most {LIMIT}.")
    if twice := [name for name, count in Counter(one.name for one, _ in everyone).items() if count > 1]:
        raise UsageError(f"<{twice[0]}> is given twice.", "Give it once, as a concept or as a style.")
    if wrong := [(one.name, s) for one, s in everyone if not isfinite(s)]:
        raise UsageError(f"The strength of <{wrong[0][0]}> is {wrong[0][1]}.", "Give a number; 1 is usual.")
    if missing := [name for name in names if not places[name]]:
        raise UsageError(
            f"The prompt does not name <{missing[0]}>, so nothing says what it should do in the picture.",
            f"Write <{missing[0]}> where it belongs, or leave the concept out.",
        )
    if layout is not None and (unknown := [name for name in layout.boxes if name not in names]):
        raise UsageError(
            f"There is a box for {unknown[0]!r}, which is not among the concepts.", f"They are: {', '.join(names)}."
        )


def check_turns(names: Sequence[str], steps: int, period: int) -> None:
    """Raise UsageError where turns of `period` steps leave none for the last of `names`."""
    needed = period * (len(names) - 1) + 1
    if steps < needed:
        raise UsageError(
            f"Switching every {period} steps, {steps} steps leave no turn for <{names[-1]}>.",
            f"Give at least {needed} steps, or another method.",
        )


def check_boxes(names: Sequence[str], layout: Layout | None, method: str) -> None:
    """Raise UsageError where one of `names` has no box, for a `method` that needs all."""
    boxes = {} if layout is None else layout.boxes
    if missing := [name for name in names if name not in boxes]:
        raise UsageError(
            f"The method {method} needs a box for <{missing[0]}>.",
            f"Give one with --box {missing[0]}=LEFT,TOP,RIGHT,BOTTOM, or choose another method.",
        )


def words_of(styles: Sequence[tuple[Concept, float]]) -> list[str]:
    """What a prompt has to say for `styles` to be called; nothing for one that does not act."""
    return [style.phrase for style, strength in styles if strength]


def notices(
    base: "BaseModel",
    settings: GenerateSettings,
    texts: Sequence[str],
    layout: Layout | None,
    styles: Sequence[tuple[Concept, float]] = (),
) -> list[str]:
    """What is done in another way than the user may expect; `texts` are those of `settings`, spelled out."""
    found = []
    if words := words_of(styles):
        found.append(f"With {' and '.join(map(repr, words))} for the style, the prompt is {texts[0]!r}.")
    for text in texts:
        if unread := base.unread(text):
            found.append(f"The base reads {base.text_limit} tokens of a text; the rest has no effect: {unread!r}.")
    if settings.negative_prompt and base.guidance_width:
        found.append("The base takes guidance as an input of its network, and the negative prompt has no effect.")
    elif settings.negative_prompt and settings.guidance <= 1:
        found.append(f"At guidance {settings.guidance:g} there is none, and the negative prompt has no effect.")
    for behind, front in [] if layout is None else layout.overlaps():
        found.append(f"The boxes of <{behind}> and <{front}> overlap; there <{front}>, which comes later, is in front.")
    return found
