"""The trash, as a part of the page Library."""

import time
from typing import Any

import gradio as gr

from studio.errors import UsageError
from studio.ui.fragments import message
from studio.ui.frame import Frame
from studio.ui.library_parts import size_words
from studio.ui.page_parts import private


def build_trash(frame: Frame, changed: gr.State, said: gr.HTML) -> gr.Dropdown:
    """Lay it out: what is in it can be restored, one by one, or deleted for good. Returns the list of what is in it,
    which `trash_choices` fills."""
    library = frame.service.library
    with gr.Accordion("Trash", open=False, elem_id="library-trash"):
        entry = gr.Dropdown([], label="Thrown away", info="The latest first.")
        name = gr.Textbox(label="Restore as", info="Empty: as it was called.", max_length=64)
        with gr.Row(elem_classes="actions"):
            restore = gr.Button("Restore", size="sm")
            empty = gr.Button("Empty the trash", variant="stop", size="sm")
            really = gr.Button("Yes, delete for good", variant="stop", size="sm", visible=False)
            keep = gr.Button("Keep it", size="sm", visible=False)

    def bring_back(entry: str | None, name: str, changed: int) -> tuple[str, str, int]:
        if not entry:
            raise UsageError("The trash is empty.", "Nothing is lost.")
        back = library.restore(entry, name.strip() or None)
        return message(f"{back} is back in the library.", kind="good"), "", changed + 1

    def delete(changed: int) -> tuple[Any, ...]:
        count = library.empty_trash()
        gone = "1 concept is" if count == 1 else f"{count} concepts are"
        return message(f"{gone} deleted for good."), changed + 1, *_asking(False)

    restore.click(frame.speaking(bring_back), [entry, name, changed], [said, name, changed], **private(queue=True))
    empty.click(lambda: _asking(True), None, [empty, really, keep], **private())
    keep.click(lambda: _asking(False), None, [empty, really, keep], **private())
    really.click(frame.speaking(delete), changed, [said, changed, empty, really, keep], **private(queue=True))
    return entry


def trash_choices(frame: Frame) -> dict[str, Any]:
    """The trash as choices, the latest first and chosen."""
    inside = frame.service.library.trashed()
    choices = [
        (f"{one.name}, {size_words(one.bytes)}, {time.strftime('%d %b %H:%M', time.localtime(one.when))}", one.entry)
        for one in inside
    ]
    return gr.update(choices=choices, value=inside[0].entry if inside else None)


def _asking(sure: bool) -> tuple[Any, Any, Any]:
    """Whether the page asks once more before it deletes: (empty, really, keep)."""
    return gr.update(visible=not sure), gr.update(visible=sure), gr.update(visible=sure)
