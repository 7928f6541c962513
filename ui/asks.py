"""What can be asked of the studio from a page, a program or a terminal, as plain values: checked, and made a job."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import UsageError
from studio.home import Home
from studio.job_records import BEST, Order
from studio.pipelines.methods import DEFAULT_METHOD, METHODS, find_method
from studio.regions import Box, Layout
from studio.ui.composing import Plan, make_plan

if TYPE_CHECKING:
    from studio.trainers.recipe import Recipe
    from studio.ui.drawing import BestOf

Text = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Strength = Annotated[float, Field(ge=-10, le=10)]
Side = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=8, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
_PLURAL_LIMIT = 8


class Ask(BaseModel):
    """The settings of one action; numbers are finite, and unknown settings are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """What a stranger gave; raises UsageError with a sentence for each mistake."""
        if not isinstance(given, Mapping):
            raise UsageError(f"{given!r:.60} is no object of settings.", f"Name them: {', '.join(cls.model_fields)}.")
        try:
            return cls(**given)
        except ValidationError as error:
            raise UsageError(
                " ".join(_sentence(dict(one)) for one in error.errors()[:5]), "Correct what is named."
            ) from error

    def arguments(self) -> dict[str, Any]:
        """Itself, as a job keeps it."""
        return self.model_dump(mode="json", exclude_none=True)


def _sentence(detail: dict[str, Any]) -> str:
    place = ".".join(map(str, detail["loc"])) or "it"
    given = repr(detail["input"])
    shown = given if len(given) <= 60 else f"{given[:57]}..."
    if detail["type"] == "missing":
        return f"{place} is missing."
    if detail["type"] == "extra_forbidden":
        return f"There is no setting {place!r}."
    return f"{place} is {shown}: {detail['msg'][0].lower()}{detail['msg'][1:]}."


class DrawAsk(Ask):
    """What all pictures need; `seed` by chance where it is not given."""

    prompt: Text
    negative_prompt: Text | None = None
    base: Text | None = None
    width: Pixels | None = None
    height: Pixels | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    scheduler: Name | None = None
    seed: Seed | None = None
    count: Annotated[int, Field(ge=1, le=64)] = 1
    vae_tiling: bool | None = None
    offload: bool | None = None
    attention: Name | None = None
    compiled: bool | None = None

    @property
    def heading(self) -> str:
        """What a list calls it."""
        return self.prompt.strip() or "no prompt"

    def options(self) -> dict[str, Any]:
        """The settings that GenerateSettings knows, None for what is not given."""
        names = (
            "prompt", "negative_prompt", "width", "height", "steps", "guidance", "scheduler", "seed", "count",
            "vae_tiling", "offload", "attention", "compiled",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def lasting(network: str | None) -> str | None:
    """A network to score by, FOLDER or MODEL=FILE where it lies on the disk, as it holds from every working directory:
    jobs are done again in others."""
    if network is None:
        return None
    model, equals, file = network.partition("=")
    if equals:
        return f"{model}={Path(file).absolute()}"
    return str(Path(network).absolute()) if Path(network).is_dir() else network


def drawn_settings(settings: Any, source: Any) -> dict[str, Any]:
    """The settings of DrawAsk as a plan has them."""
    names = set(DrawAsk.model_fields) - {"base"}
    return {name: getattr(settings, name) for name in names} | {"base": source.lasting if source else None}


class ComposeAsk(DrawAsk):
    """Concepts with their strengths, riding styles, and boxes (left, top, right, bottom; a later one is in front).

    `beside_merge` also draws what plain merging makes of it, from the same seeds; `compare` all methods, and a sheet.
    What chooses among `best_of` candidates is `clip`, with `references` (folders of pictures, by concept).
    """

    concepts: Annotated[dict[Name, Strength], Field(max_length=_PLURAL_LIMIT)] = {}
    styles: Annotated[dict[Name, Strength], Field(max_length=_PLURAL_LIMIT)] = {}
    boxes: Annotated[dict[Name, tuple[Side, Side, Side, Side]], Field(max_length=_PLURAL_LIMIT)] = {}
    method: Name = DEFAULT_METHOD
    beside_merge: bool = False
    compare: bool = False
    best_of: Annotated[int, Field(ge=1, le=16)] = 1
    clip: Text | None = None
    references: dict[Name, str] = {}

    @classmethod
    def of(cls, plan: Plan, best_of: "BestOf", *, compare: bool) -> Self:
        """What a finished plan would be asked for by."""
        return cls.model_construct(
            **drawn_settings(plan.settings, plan.source), concepts={one.name: s for one, s in plan.concepts},
            styles={one.name: s for one, s in plan.styles}, compare=compare,
            best_of=best_of.number, clip=lasting(best_of.clip),
            references={name: str(folder.absolute()) for name, folder in best_of.folders.items()},
            boxes={} if plan.layout is None else {name: box.sides for name, box in plan.layout.boxes.items()},
            method=DEFAULT_METHOD if compare else plan.methods[0].name,
        )  # fmt: skip

    def plan(self, home: Home) -> Plan:
        """All of it checked against the library; raises UsageError."""
        layout = Layout({name: Box(*sides) for name, sides in self.boxes.items()}) if self.boxes else None
        methods = list(METHODS.values()) if self.compare else [find_method(self.method)]
        if self.beside_merge and self.method != "merge" and not self.compare:
            methods.append(METHODS["merge"])
        chosen, riding = _with_strengths(self.concepts), _with_strengths(self.styles)
        plan = make_plan(home, self.options(), chosen, riding, self.base, methods, layout, None, None)
        known = METHODS["merge"].notice(layout)  # which is beside the point where merging only stands by
        beside = self.beside_merge and self.method != "merge"
        return replace(plan, notices=[one for one in plan.notices if one != known]) if beside else plan

    def order(self, device: str | None = None) -> Order:
        """The job that does this."""
        title = f"{self.heading} ({'all methods' if self.compare else self.method})"
        return Order("compose", title, "studio.ui.work:compose", self.arguments(), device or BEST, warm=True)


def _with_strengths(chosen: Mapping[str, float]) -> list[str]:
    return [f"{name}={strength!r}" for name, strength in chosen.items()]


class GenerateAsk(DrawAsk):
    """Plain pictures, concepts merged."""

    concepts: Annotated[dict[Name, Strength], Field(max_length=_PLURAL_LIMIT)] = {}

    @classmethod
    def of(cls, settings: Any, source: Any, concepts: Sequence[tuple[Any, float]]) -> Self:
        """What finished settings would be asked for by."""
        return cls.model_construct(
            **drawn_settings(settings, source), concepts={one.name: strength for one, strength in concepts}
        )

    def order(self, device: str | None = None) -> Order:
        """The job that does this."""
        return Order("generate", self.heading, "studio.ui.work:generate", self.arguments(), device or BEST, warm=True)


class StylizeAsk(DrawAsk):
    """The content half of one concept, the style half of another, or one of them."""

    content: Name | None = None
    style: Name | None = None
    content_strength: Strength | None = None
    style_strength: Strength | None = None

    def order(self, device: str | None = None) -> Order:
        """The job that does this."""
        return Order("stylize", self.heading, "studio.ui.work:stylize", self.arguments(), device or BEST, warm=True)


class EvaluateAsk(Ask):
    """Concepts, prompts or a protocol, by methods, on `seeds` pictures each from `seed` on."""

    names: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    prompts: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    together: Annotated[int, Field(ge=2)] | None = None
    protocol: Name | None = None
    checkpoints: bool = False
    methods: Annotated[tuple[Name, ...], Field(max_length=len(METHODS))] = ()
    boxes: Annotated[dict[Name, tuple[Side, Side, Side, Side]], Field(max_length=_PLURAL_LIMIT)] = {}
    seeds: Annotated[int, Field(ge=1, le=1000)] = 4
    seed: Seed = 0
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    base: Text | None = None
    clip: Text | None = None
    dino: Text | None = None
    detector: Text | None = None
    references: dict[Name, str] = {}

    def layout(self) -> Layout | None:
        """Its boxes."""
        return Layout({name: Box(*sides) for name, sides in self.boxes.items()}) if self.boxes else None

    def order(self, device: str | None = None) -> Order:
        """The job that does this."""
        title = "Evaluate " + (", ".join(self.names) or "; ".join(self.prompts[:2]) or str(self.protocol))
        return Order("evaluate", title, "studio.ui.work:evaluate", self.arguments(), device or BEST, warm=True)


def train_order(
    recipe: "Recipe",
    *,
    overwrite: bool = False,
    device: str | None = None,
    processes: int = 1,
    export: Sequence[str] = (),
    clip: str | None = None,
) -> Order:
    """The job that trains `recipe`; it can be paused, and goes on from its checkpoints."""
    arguments = {
        "recipe": recipe.model_dump(mode="json", exclude_none=True), "overwrite": overwrite, "processes": processes,
        "export": list(export), "clip": lasting(clip),
    }  # fmt: skip
    each = " and ".join(f"{one.name}, {one.class_word}" for one in (recipe, *recipe.others))
    title = f"Train {each} ({recipe.method}, {recipe.preset})"
    return Order("train", title, "studio.ui.work:train", arguments, device or BEST, pausable=True)
