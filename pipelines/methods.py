"""The ways to compose by name, and what each asks for. Torch-free: a method is imported when it is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from studio.errors import UsageError
from studio.pipelines.request import PERIOD, check_boxes, check_turns
from studio.regions import Layout

if TYPE_CHECKING:
    from studio.pipelines.compose import Composer


@dataclass(frozen=True)
class Method:
    """One way to compose: `place` is "module:Class" below studio.pipelines, `boxes` whether it looks at a layout,
    `period` the steps after which it goes on to the next concept, None where all act in every step. `passes` through
    the UNet are those of a step with k concepts, in words."""

    name: str
    does: str
    place: str
    boxes: Literal["ignores", "uses", "needs"] = "ignores"
    period: int | None = None
    passes: str = "1"

    def make(self) -> "Composer":
        """A composer with the settings that we recommend."""
        module, _, kind = self.place.partition(":")
        return getattr(import_module(f"studio.pipelines.{module}"), kind)()

    def check(self, names: Sequence[str], layout: Layout | None, steps: int) -> None:
        """Raise UsageError where the method needs a box that is not there, or more steps."""
        if self.period is not None:
            check_turns(names, steps, self.period)
        if self.boxes == "needs":
            check_boxes(names, layout, self.name)

    def notice(self, layout: Layout | None) -> str | None:
        """What to say where there are boxes and the method does not look at them."""
        if layout is None or self.boxes != "ignores":
            return None
        able = [one.name for one in METHODS.values() if one.boxes != "ignores"]
        return f"The method {self.name} does not look at boxes. Those that do: {', '.join(able)}."


METHODS = {
    one.name: one
    for one in (
        Method(
            "auto",
            "every adapter on its own words and its own ground: its box, or where the base puts its class; last alone",
            "auto:Auto",
            "uses",
            passes="1, and k in the last three of ten",
        ),
        Method("merge", "adds all adapters to the weights; the usual way, and the one that blends", "baselines:Merge"),
        Method("switch", "one adapter at a time, for five steps each in turn", "baselines:Switch", period=PERIOD),
        Method("composite", "the mean of what every adapter alone predicts", "baselines:Composite", passes="k"),
        Method(
            "recentred", "the base, moved by what every adapter alone changes", "baselines:Recentred", passes="k + 1"
        ),
        Method(
            "cmlora",
            "composite with one adapter in the lead, the others mostly from a cache",
            "cmlora:CmLora",
            passes="k, most of them short",
        ),
        Method("clora", "one branch a concept, each giving the pixels that its own words look at", "clora:Clora"),
        Method(
            "lora-composer",
            "every box reads its own text by its own adapter; losses bring concepts there",
            "lora_composer:LoraComposer",
            "needs",
            passes="1, and 1 with gradients in up to half of the steps",
        ),
        Method(
            "freefuse",
            "the base shows where each thing will be; then every adapter there and on its own words",
            "freefuse:FreeFuse",
        ),
        Method(
            "masked",
            "what every adapter alone predicts, inside its box",
            "regional:Masked",
            "needs",
            passes="k, and the base's where boxes leave room; at first 1",
        ),
        Method("regional", "every adapter inside its box and on its own words", "regional:Regional", "needs"),
    )
}
DEFAULT_METHOD = "auto"
PUBLISHED = ("switch", "composite", "cmlora", "clora", "lora-composer", "freefuse")  # for adapters, by others
AS_PUBLISHED = {  # where we recommend other settings than the authors, theirs: for benchmarks
    "lora-composer": Method(
        "lora-composer-authors",
        "few layers of an adapter act, and boxes do not see each other",
        "lora_composer:as_published",
        "needs",
    ),
    "freefuse": Method(
        "freefuse-authors",
        "masks by features alone, and the first steps drawn again with adapters",
        "freefuse:as_published",
    ),
}


def find_method(name: str) -> Method:
    """The method called `name`; raises UsageError with the nearest name."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"There is no method {name!r}.", f"{hint}Use one of: {', '.join(METHODS)}.")
    return METHODS[name]
