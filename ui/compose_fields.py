"""What the page Compose makes of its fields: layouts, tables, requests, and all of them back from a picture."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from studio.bases import EMBEDDED, source_sizes
from studio.concepts import placeholders
from studio.errors import UsageError
from studio.library import Library
from studio.pipelines.methods import DEFAULT_METHOD, METHODS
from studio.pipelines.outputs import STYLIZE
from studio.pipelines.recall import Recalled, recall
from studio.pipelines.schedulers import DEFAULT
from studio.pipelines.settings import usual_width
from studio.ui.asking import choose_base
from studio.ui.asks import ComposeAsk
from studio.ui.canvas import LayoutValue, from_layout, read_layout_value, to_layout
from studio.ui.form_parts import decimal, whole
from studio.ui.fragments import message
from studio.ui.library_parts import base_words
from studio.ui.marks import marks
from studio.ui.page_parts import named
from studio.untrusted import shown

SHAPES = ("usual", "wide", "tall")
FIELDS = (  # that a picture fills, and what is said of it
    "concepts", "canvas", "table", "chips", "prompt", "written", "method", "count", "seed", "styles", "strengths",
    "steps", "guidance", "negative", "best_of", "shape", "said",
)  # fmt: skip


def library_names(library: Library) -> list[str]:
    """The concepts there are."""
    return [one.name for one in library.concepts()]


def sentence(names: list[str]) -> str:
    """A prompt that names all."""
    return " and ".join(f"a <{name}>" for name in names)


def canvas_size(library: Library, names: list[str], shape: str) -> tuple[int, int]:
    """Width and height in pixels: as `studio compose` would draw, or half as wide or high again."""
    concepts = [library.find(name) for name in names]
    source = choose_base(None, concepts)
    sizes = source_sizes(source)
    width, height = sizes.native
    longer = width * 3 // 2 // sizes.step * sizes.step
    usual = usual_width(source, len(names)) or width
    return {"wide": (longer, height), "tall": (width, longer)}.get(shape, (usual, height))


def canvas_for(library: Library, names: list[str], shape: str, value: LayoutValue | None = None) -> LayoutValue:
    """A canvas for `names`, with what boxes there were for them."""
    width, height = canvas_size(library, names, shape)
    layout = (
        to_layout(value.model_copy(update={"boxes": [b for b in value.boxes if b.concept in names]})) if value else None
    )
    return from_layout(layout, names, width=width, height=height)


def rows_of(value: LayoutValue) -> list[list[Any]]:
    """The boxes as the table shows them."""
    return [[b.concept, *(round(100 * side, 1) for side in (b.x, b.y, b.x + b.w, b.y + b.h))] for b in value.boxes]


def from_rows(rows: list[list[Any]], value: LayoutValue) -> LayoutValue:
    """The canvas as the table says; raises UsageError for a row that is no box."""
    boxes = []
    for row in rows:
        if not str(row[0] or "").strip():
            continue
        try:
            left, top, right, bottom = (float(cell) / 100 for cell in row[1:5])
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"The box of {row[0]!s:.40} is not complete.", "Give four numbers from 0 to 100."
            ) from error
        boxes.append({"concept": str(row[0]), "x": left, "y": top, "w": right - left, "h": bottom - top})
    return read_layout_value(value.model_dump() | {"boxes": boxes})


def strengths_for(rows: list[list[Any]], names: list[str], before: LayoutValue) -> list[list[Any]]:
    """The strengths when `names` are chosen: a new concept gets 1, one chosen only `before` loses its own."""
    gone = {one.name for one in before.concepts}.difference(names)
    kept = [row for row in rows or [] if row[0] and row[0] not in gone]
    known = {row[0] for row in kept}
    return [*kept, *([name, 1.0] for name in names if name not in known)]


def chips(names: list[str]) -> str:
    """A button a concept, which puts it into the prompt."""
    chip = (
        '<li><button type="button" class="chip" data-name="{0}" style="--colour:{2};--ink:{3}"'
        ' title="Put it into the prompt"><b>{1}</b>&lt;{0}&gt;</button></li>'
    )
    found = "".join(chip.format(escape(one.name), one.letter, one.colour, one.ink) for one in marks(names))
    return f'<ul class="chips" aria-label="Concepts to put into the prompt">{found}</ul>' if names else ""


def inserted(prompt: str, event: gr.EventData) -> str:
    """The prompt with the concept whose chip was pressed."""
    name = named(event)
    return f"{prompt.rstrip()} <{name}>".strip() if f"<{name}>" not in prompt else prompt


def cost(name: str) -> str:
    """What a method does and takes."""
    method = METHODS.get(name)
    if method is None:
        return ""
    boxes = {"uses": "uses boxes where there are any", "needs": "needs a box for each", "ignores": "ignores boxes"}
    passes = f"Passes a step for k concepts: {method.passes}; {boxes[method.boxes]}."
    return f'<p class="note">{escape(method.does)}. {passes}</p>'


def asked_for(
    library: Library, prompt: str | None, names: list[str], canvas: LayoutValue, shape: str, method: str, count: int,
    seed: str | None, beside: bool, styles: list[str], strengths: list[list[Any]], steps: str | None,
    guidance: str | None, negative: str | None, best_of: float,
) -> ComposeAsk:  # fmt: skip
    """What the page asks for; raises UsageError for what it cannot be."""
    prompt, names, styles = prompt or "", names or [], styles or []
    layout = to_layout(canvas)
    called = placeholders(prompt)
    if missing := [name for name in names if name not in called]:
        raise UsageError(f"The prompt does not name <{missing[0]}>.", f"Write <{missing[0]}> where it belongs.")
    weights = {str(row[0]): row[1] for row in strengths or [] if row[0] and row[1] not in (None, "")}
    weighed = [name for name in called if name in weights and name not in styles]
    given: dict[str, Any] = {
        "prompt": prompt, "method": method, "count": count, "best_of": int(best_of),
        "concepts": {name: weights.get(name, 1.0) for name in (*names, *weighed)},
        "styles": {name: weights.get(name, 1.0) for name in styles},
        "boxes": {} if layout is None else {n: b.sides for n, b in layout.boxes.items() if n in called},
        "beside_merge": beside and len(called) > 1,
    }  # fmt: skip
    if canvas.concepts:
        given |= {"width": canvas.width, "height": canvas.height}
    elif shape != SHAPES[0]:  # the canvas has no size for what only the prompt names
        known = [name for name in called if ":" not in name]  # "<lora:...>" is no concept
        given["width"], given["height"] = canvas_size(library, [*known, *styles], shape)
    optional = {
        "seed": whole(seed, "The seed"), "steps": whole(steps, "Steps"), "guidance": decimal(guidance, "Guidance"),
        "negative_prompt": negative or None,
    }  # fmt: skip
    return ComposeAsk.read(given | {key: value for key, value in optional.items() if value is not None})


def restored(library: Library, file: str | None) -> list[Any]:
    """Every field as the dropped picture tells it; raises UsageError for one that tells nothing."""
    if file is None:
        return [gr.skip()] * len(FIELDS)
    told = recall(Path(file))
    if told.method == STYLIZE:
        raise UsageError("This picture was drawn on the page Stylize.", "Drop it there.")
    for one in (*told.concepts, *told.styles):
        one.check(library.find(one.name), one.name)
    fields = filled(told, [one.name for one in told.concepts], [one.name for one in told.styles])
    return [(fields | {"said": _unsaid(library, told, fields["shape"])})[name] for name in FIELDS]


def filled(told: Recalled, names: list[str], styles: list[str]) -> dict[str, Any]:
    """The fields of a picture that tells of `names` and `styles`."""
    width, height = told.settings["width"], told.settings["height"]
    value = from_layout(told.layout, names, width=width, height=height)
    return {
        "concepts": names, "canvas": value, "table": rows_of(value), "chips": chips(names), "prompt": told.prompt,
        "written": sentence(names), "method": told.method if told.method in METHODS else DEFAULT_METHOD, "count": 1,
        "seed": str(told.settings["seed"]), "styles": styles,
        "strengths": [[one.name, one.strength] for one in (*told.concepts, *told.styles)],
        "steps": str(told.settings["steps"]), "guidance": str(told.settings["guidance"]),
        "negative": told.settings["negative_prompt"], "best_of": 1,
        "shape": "usual" if width == height else "wide" if width > height else "tall",
    }  # fmt: skip


def _unsaid(library: Library, told: Recalled, shape: str) -> str:
    """A message on what a picture was asked for and the page cannot ask for; "" where that is nothing."""
    settings, styles = told.settings, [one.name for one in told.styles]
    bases = {library.find(one.name).base for one in (*told.concepts, *told.styles)} or {EMBEDDED}
    size = (settings["width"], settings["height"])
    lacking = {
        f"the scheduler {shown(settings['scheduler'])}": settings["scheduler"] != DEFAULT,
        f"the base {shown(base_words(told.base))}": bases != {told.base},
        "decoding in tiles": settings["vae_tiling"],
        f"the method {shown(told.method)}": told.method not in METHODS,
        f"a size of {size[0]} x {size[1]} without a concept": not told.concepts
        and (len(bases) > 1 or size != canvas_size(library, styles, shape)),
    }
    notice, cannot = told.notice(), [words for words, so in lacking.items() if so]
    if not cannot:
        return message(notice, kind="warn") if notice else ""
    said = f"This page does not ask for {', '.join(cannot)}, as the picture was."
    return message(f"{notice or ''} {said}".strip(), "Draw it in a terminal: studio compose --from PICTURE", "warn")
