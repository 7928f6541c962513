"""The page Library: concepts as cards, everything about the one that is chosen, and what can be done with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.errors import UsageError
from studio.ui import library_parts as parts
from studio.ui.downloads import AS_IT_IS, KINDS, exported
from studio.ui.form_parts import begin
from studio.ui.fragments import message
from studio.ui.frame import Frame
from studio.ui.page_import import build_import, offered_bases
from studio.ui.page_parts import name_picker, named, private, title
from studio.ui.page_trash import build_trash, trash_choices
from studio.ui.reworking import MergeAsk, ResizeAsk

# Where the panel lies below the cards, a choice brings it into sight.
_SHOW_PANEL = """() => {
  if (window.innerWidth < 900) document.getElementById('concept-panel')?.scrollIntoView({ block: 'start' });
}"""


@dataclass(frozen=True)
class _Page:
    """What the parts of the page share: who is chosen, a number that changes with the library, and the last word."""

    frame: Frame
    chosen: gr.State
    changed: gr.State
    said: gr.HTML

    def act(self, button: gr.Button, do: Callable[..., str], inputs: Sequence[Any]) -> None:
        """Let `button` do `do(name, *values of inputs)` with the chosen concept, and show what it says."""

        def handler(name: str, changed: int, *values: Any) -> tuple[str, int]:
            return do(_named(name), *values), changed + 1

        begin(self.frame, button, handler, [self.chosen, self.changed, *inputs], [self.said, self.changed])


def build(frame: Frame) -> gr.State:
    """Lay the page out; returns a number that changes with the library, for other pages to follow."""
    title("Library", "Everything you trained or brought in. Choose a concept to see what it is and what it can become.")
    page = _Page(frame, gr.State(""), gr.State(0), gr.HTML(elem_id="library-said"))
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=340):
            listed, filters = _build_cards(page)
            base = build_import(frame, page.changed, page.said)
            entry = build_trash(frame, page.changed, page.said)
        with gr.Column(scale=2, min_width=340, visible=False, elem_id="concept-panel") as panel:
            view, held, fields = _build_panel(page)
    library = frame.service.library

    def choose(event: gr.EventData) -> tuple[Any, ...]:
        name = library.find(named(event)).name
        return name, gr.update(visible=True), parts.detail(frame.service, name), "", *_offered(frame, name)

    def fill() -> tuple[Any, ...]:
        return *filter_choices(frame), offered_bases(frame), trash_choices(frame)

    lists = [*filters, base, entry]
    frame.on_show("library", fill, lists)
    page.changed.change(fill, None, lists, **private())
    page.chosen.change(lambda name: gr.update(visible=bool(name)), page.chosen, panel, **private())
    listed.select(
        frame.speaking(choose), None, [page.chosen, panel, view, page.said, *fields], **private(queue=True)
    ).then(None, None, None, js=_SHOW_PANEL, **private()).then(
        frame.speaking(lambda name: parts.inspected(library.find(name))), page.chosen, held, **private(queue=True)
    )
    return page.changed


def filter_choices(frame: Frame) -> list[dict[str, Any]]:
    """What the cards can be chosen by: bases, methods, tags."""
    everyone = frame.service.library.concepts()
    found = (
        ("all bases", {one.base for one in everyone}), ("all methods", {one.method for one in everyone}),
        ("all tags", {tag for one in everyone for tag in one.tags}),
    )  # fmt: skip
    return [
        gr.update(choices=[(everything, ""), *((parts.base_words(one), one) for one in sorted(several))])
        for everything, several in found
    ]


def shown_detail(frame: Frame, name: str) -> str:
    """The chosen concept in full, or what there is to say where it is gone."""
    try:
        return parts.detail(frame.service, name) if name else ""
    except UsageError as error:
        return message(error.problem, kind="warn")


def _offered(frame: Frame, name: str) -> tuple[Any, ...]:
    """What the fields of the panel begin with for a concept; see `_build_panel`."""
    concept, everyone = frame.service.library.find(name), frame.service.library.concepts()
    tags = sorted({tag for one in everyone for tag in one.tags})
    others = [one.name for one in everyone if one.base == concept.base and one.name != name]
    other = others[0] if others else None
    return (
        gr.update(value=list(concept.tags), choices=tags), name, gr.update(value=None, visible=False),
        f"{name}-small"[:64], gr.update(choices=others, value=other), f"{name}-{other or 'both'}"[:64],
    )  # fmt: skip


def _build_cards(page: _Page) -> tuple[gr.HTML, list[gr.Dropdown]]:
    """The cards, and the lists that they are chosen by; for an empty library the way out."""
    frame = page.frame
    with gr.Row(elem_classes="filters"):
        text = gr.Textbox(label="Find", placeholder="name, word, tag", min_width=160)
        # Custom values, so that a tab may still say what another took away: then nothing fits.
        filters = [
            gr.Dropdown(
                [(f"all {what}s", "")], value="", label=what.capitalize(), min_width=160, allow_custom_value=True
            )
            for what in ("base", "method", "tag")
        ]
    listed = name_picker("library-cards")
    with gr.Row(visible=False, elem_classes="centred") as way_out:
        samples = gr.Button("Try with the samples", variant="primary", elem_id="library-samples")
    frame.watch(
        listed, lambda chosen, changed, *sought: parts.cards(frame.service, parts.Sought.of(*sought), chosen),
        page.chosen, page.changed, text, *filters,
    )  # fmt: skip
    frame.watch(way_out, lambda changed: gr.update(visible=not frame.service.library.concepts()), page.changed)

    def add(changed: int) -> tuple[str, int]:
        names = ", ".join(frame.service.add_samples())
        return message(f"In the library: {names}.", "Choose one, or name them on the page Compose."), changed + 1

    begin(frame, samples, add, [page.changed], [page.said, page.changed], "Bringing them in ...")
    return listed, filters


def _build_panel(page: _Page) -> tuple[gr.HTML, gr.HTML, list[Any]]:
    """(the concept, what its file holds, the fields that `_offered` fills)."""
    frame, library = page.frame, page.frame.service.library
    view = gr.HTML(elem_id="concept-view")
    frame.watch(view, lambda name, changed: shown_detail(frame, name), page.chosen, page.changed)
    with gr.Accordion("What the file holds", open=False):
        held = gr.HTML("Looking into the file ...")
    tags = gr.Dropdown(
        label="Tags", info="Choose, or write a new one and press Enter.", multiselect=True, allow_custom_value=True,
    )  # fmt: skip

    def retag(name: str, wanted: list[str] | None, changed: int) -> Any:
        known, wanted = library.find(_named(name)).tags, wanted or []
        if sorted(wanted) == sorted(known):  # the page itself filled the field
            return gr.skip()
        library.tag(name, [one for one in wanted if one not in known], [one for one in known if one not in wanted])
        return changed + 1

    # Not `input`, which Gradio 6.31 leaves out for a value that is new to the list.
    tags.change(frame.speaking(retag), [page.chosen, tags, page.changed], page.changed, **private(queue=True))
    with gr.Accordion("Save it for other programs", open=False):
        kind = gr.Radio(list(KINDS), value=AS_IT_IS, label="Format", info="kohya is what ComfyUI and A1111 read.")
        make = gr.Button("Make the file", size="sm")
        made = gr.File(label="To save", visible=False, interactive=False, file_count="multiple")
    begin(
        frame, make, lambda name, kind: gr.update(value=_export(frame, name, kind), visible=True),
        [page.chosen, kind], made, "Making it ...",
    )  # fmt: skip
    renamed = _build_names(page)
    smaller, other, merged = _build_reworking(page)
    return view, held, [tags, renamed, made, smaller, other, merged]


def _build_names(page: _Page) -> gr.Textbox:
    """Renaming, and throwing away."""
    library = page.frame.service.library
    with gr.Accordion("Rename or throw away", open=False):
        renamed = gr.Textbox(label="New name", max_length=64)
        with gr.Row(elem_classes="actions"):
            rename = gr.Button("Rename", size="sm")
            discard = gr.Button("Move to the trash", variant="stop", size="sm", elem_id="concept-trash")

    def call(name: str, new: str, changed: int) -> tuple[str, str, int]:
        new = new.strip()
        library.rename(_named(name), new)
        return message(f"{name} is now called {new}.", f"Write <{new}> in prompts."), new, changed + 1

    def throw(name: str, changed: int) -> tuple[str, str, int]:
        library.trash(_named(name))
        return message(f"{name} is in the trash.", "It can be restored below the cards."), "", changed + 1

    outputs = [page.said, page.chosen, page.changed]
    rename.click(page.frame.speaking(call), [page.chosen, renamed, page.changed], outputs, **private(queue=True))
    discard.click(page.frame.speaking(throw), [page.chosen, page.changed], outputs, **private(queue=True))
    return renamed


def _build_reworking(page: _Page) -> tuple[gr.Textbox, gr.Dropdown, gr.Textbox]:
    """(name of a smaller copy, the concept to merge with, name of both in one)."""
    service = page.frame.service
    with gr.Accordion("Make a smaller copy", open=False):
        rank = gr.Slider(1, 128, value=8, step=1, label="Highest rank of a layer", info="Fewer ranks, a smaller file.")
        smaller = gr.Textbox(label="Name of the copy", max_length=64)
        resize = gr.Button("Make the copy", size="sm")
    with gr.Accordion("Merge with another", open=False):
        other = gr.Dropdown([], label="The other concept")
        with gr.Row():
            own = gr.Slider(-2, 2, value=1, step=0.05, label="Weight of this")
            others = gr.Slider(-2, 2, value=1, step=0.05, label="Weight of the other")
        cut = gr.Slider(0, 128, value=0, step=1, label="Highest rank", info="0 keeps all of both, exactly.")
        merged = gr.Textbox(label="Name of both in one", max_length=64)
        merge = gr.Button("Merge", size="sm")

    def begun(ask: ResizeAsk | MergeAsk) -> str:
        job = service.submit(ask.order(service.home))
        return message(f"Job {job.id} makes {ask.new}.", "It appears among the cards when it is done.")

    page.act(
        resize, lambda name, rank, new: begun(ResizeAsk.read({"name": name, "rank": rank, "new": new.strip()})),
        [rank, smaller],
    )  # fmt: skip

    def both(name: str, other: str | None, own: float, others: float, cut: int, new: str) -> str:
        if not other:
            raise UsageError("There is no other concept of this base.", "Train or bring in another one.")
        given = {"names": (name, other), "weights": (own, others), "new": new.strip(), "rank": cut or None}
        return begun(MergeAsk.read(given))

    page.act(merge, both, [other, own, others, cut, merged])
    return smaller, other, merged


def _export(frame: Frame, name: str, kind: str) -> list[str]:
    return [str(one) for one in exported(frame.service.library.find(_named(name)), kind)]


def _named(name: str) -> str:
    if not name:
        raise UsageError("No concept is chosen.", "Choose a card.")
    return name
