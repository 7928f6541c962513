"""The canvas on which a page asks where each concept shall be, and the reading of what it sends."""

import re
from abc import ABCMeta
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Annotated, Any

import gradio as gr
from gradio.component_meta import ComponentMeta, updateable
from gradio.events import Dependency, EventListener
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from studio import regions
from studio.errors import UsageError
from studio.ui.marks import marks

MOST_BOXES = 8
MOST_CONCEPTS = 24
LEAST_SIDE, MOST_SIDE = 16, 4096
SLACK = 1e-6  # what x + w may exceed 1 by: floats add up so
# A picture comes from this page's own server or lies in the value itself; nothing else is ever fetched.
_PICTURE = re.compile(
    r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}|/?[^/\\:\x00-\x20][^/\\:\x00-\x1f]*(?:/[^\x00-\x1f]*)?"
)
_MEANING = {"x": "left edge", "y": "upper edge", "w": "width", "h": "height", "concept": "concept"}

Place = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Extent = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=LEAST_SIDE, le=MOST_SIDE)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


def _as_gradio_reads_it(schema: dict[str, Any]) -> None:
    # gradio_client fails on a schema that says "additionalProperties": false, and then no page opens
    schema.pop("additionalProperties", None)


class _Checked(BaseModel):
    """What a browser sent: no field but those known, no number given as text."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_as_gradio_reads_it)


class Choice(_Checked):
    """A concept that a box may be bound to, and how it is marked."""

    name: Name
    letter: Annotated[str, Field(pattern=r"^[A-Z]$")]
    colour: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
    label: Annotated[str, Field(max_length=64)] = ""


class Box(_Checked):
    """The place of a concept, in fractions of the canvas from its upper left."""

    concept: Name
    x: Place
    y: Place
    w: Extent
    h: Extent

    @model_validator(mode="after")
    def _inside(self) -> "Box":
        if self.x + self.w > 1 + SLACK or self.y + self.h > 1 + SLACK:
            raise ValueError("it reaches beyond the canvas")
        return self


class LayoutValue(_Checked):
    """The value of a canvas: the picture's size, the concepts to choose from, and boxes, later ones in front."""

    width: Side
    height: Side
    concepts: Annotated[list[Choice], Field(max_length=MOST_CONCEPTS)] = []
    boxes: Annotated[list[Box], Field(max_length=MOST_BOXES)] = []
    picture: Annotated[str, Field(max_length=12_000_000)] | None = None

    @field_validator("picture")
    @classmethod
    def _local(cls, picture: str | None) -> str | None:
        if picture is not None and not _PICTURE.fullmatch(picture):
            raise ValueError("it is neither a picture nor an address on this server")
        return picture

    @model_validator(mode="after")
    def _each_once(self) -> "LayoutValue":
        known = [choice.name for choice in self.concepts]
        bound = [box.concept for box in self.boxes]
        if twice := [name for name in known if known.count(name) > 1]:
            raise ValueError(f"the concept {twice[0]!r} is listed twice")
        if twice := [name for name in bound if bound.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} has more than one box")
        if unknown := [name for name in bound if name not in known]:
            raise ValueError(f"a box is bound to {unknown[0]!r}, which is none of the concepts chosen")
        return self


def read_layout_value(value: object) -> LayoutValue:
    """The layout that a browser or a program sent; raises UsageError, which names the box that is wrong."""
    try:
        return LayoutValue.model_validate(value)
    except ValidationError as error:
        raise UsageError(*_in_words(error, value)) from error


def _in_words(error: ValidationError, value: object) -> tuple[str, str]:
    """What is wrong first, and what to do about it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    match first["loc"]:
        case ("boxes", int(place), *field):
            box = f"Box {place + 1}{_bound_to(value, place)}"
            what = f": its {_MEANING.get(str(field[0]), 'form')} {reason}" if field else f": {reason}"
            return f"{box}{what}.", "Draw it again inside the canvas, or remove it."
        case ("boxes",):
            return f"The layout's boxes: the {reason}.", f"Give each concept one box, {MOST_BOXES} at most."
        case ():
            return f"The layout cannot be read: {reason}.", "Draw the boxes anew, one for each concept chosen."
        case place:
            return f"The layout's {str(place[0])[:64]}: {reason}.", "Choose the concepts and the size anew."


def _bound_to(value: object, place: int) -> str:
    """`, milo` where the box at `place` says so."""
    boxes = value.get("boxes") if isinstance(value, dict) else None
    box = boxes[place] if isinstance(boxes, list) and place < len(boxes) else None
    name = box.get("concept") if isinstance(box, dict) else None
    return f", {name[:64]}" if isinstance(name, str) and name else ""


def to_layout(value: LayoutValue) -> regions.Layout | None:
    """The places that composers take, or None where nothing was drawn."""
    if not value.boxes:
        return None
    return regions.Layout(
        {b.concept: regions.Box(b.x, b.y, min(b.x + b.w, 1.0), min(b.y + b.h, 1.0)) for b in value.boxes}
    )


def from_layout(
    layout: regions.Layout | None,
    names: Sequence[str],
    *,
    width: int,
    height: int,
    labels: Mapping[str, str] | None = None,
    picture: str | None = None,
) -> LayoutValue:
    """What a canvas of `width` x `height` shows for `layout`, where `names` may be chosen; raises UsageError."""
    if len(names) > MOST_CONCEPTS:
        raise UsageError(f"A layout of {len(names)} concepts is too crowded.", f"Choose {MOST_CONCEPTS} at most.")
    placed = layout.boxes if layout else {}
    content = {
        "width": width,
        "height": height,
        "concepts": [
            {"name": m.name, "letter": m.letter, "colour": m.colour, "label": (labels or {}).get(m.name, "")}
            for m in marks(names)
        ],
        "boxes": [
            {"concept": name, "x": b.left, "y": b.top, "w": b.right - b.left, "h": b.bottom - b.top}
            for name, b in placed.items()
        ],
        "picture": picture,
    }
    return read_layout_value(content)


class _WithoutStub(ComponentMeta):
    """Gradio's metaclass, but for the .pyi file that it writes beside the source of every component."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> type:
        attrs["__init__"] = updateable(attrs["__init__"])
        return ABCMeta.__new__(cls, name, bases, attrs)


class LayoutCanvas(gr.HTML, metaclass=_WithoutStub):
    """Boxes drawn, moved, sized and bound to concepts by mouse, touch or keys.

    Handlers get a checked LayoutValue.
    """

    def __init__(
        self,
        value: LayoutValue | None = None,
        *,
        label: str = "Layout",
        visible: bool = True,
        elem_id: str | None = None,
        elem_classes: list[str] | str | None = None,
        render: bool = True,
    ) -> None:
        super().__init__(
            value=value or LayoutValue(width=512, height=512),
            label=label,
            visible=visible,
            elem_id=elem_id,
            elem_classes=elem_classes,
            render=render,
            html_template=_part("canvas.html"),
            css_template=_part("canvas.css"),
            js_on_load="".join(_part(name) for name in ("canvas_geometry.js", "canvas.js", "canvas_input.js")),
            apply_default_css=False,
        )

    @property
    def layout_changed(self) -> Callable[..., Dependency]:
        """The event of every finished gesture: `canvas.layout_changed(handler, inputs, outputs)`.

        By gradio's default a gesture made while the handler of another still runs would be lost to the server.
        """
        listener = EventListener("layout_changed").listener
        return partial(listener, self, trigger_mode="always_last", show_progress="hidden")

    def preprocess(self, payload: object) -> LayoutValue:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The checked layout that a handler gets; a wrong one ends the event with a sentence."""
        try:
            return read_layout_value(payload)
        except UsageError as error:
            raise gr.Error(str(error), title="Layout", print_exception=False) from error

    def postprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, value: LayoutValue | dict[str, Any] | None
    ) -> dict[str, Any]:
        """The JSON that the browser draws, checked as well: None clears the canvas."""
        checked = value if isinstance(value, LayoutValue) else read_layout_value(value or _EMPTY)
        return checked.model_dump()

    def api_info(self) -> dict[str, Any]:
        """The JSON schema of the value, for programs."""
        return LayoutValue.model_json_schema()

    def example_payload(self) -> dict[str, Any]:
        """A layout of one box."""
        left = regions.Layout({"milo": regions.Box(0.05, 0.2, 0.5, 0.95)})
        return from_layout(left, ["milo"], width=512, height=512).model_dump()

    def example_value(self) -> dict[str, Any]:
        """The same as a value."""
        return self.example_payload()


_EMPTY = {"width": 512, "height": 512}


def _part(name: str) -> str:
    """A file of the page that ships with the studio."""
    return (files("studio.assets") / "web" / name).read_text(encoding="utf-8")
