"""Bringing in an adapter file, as a part of the page Library: what it holds, then its words, then it is taken in."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import UsageError
from studio.ui import library_parts as parts
from studio.ui.form_parts import begin
from studio.ui.frame import Frame
from studio.ui.page_parts import private

if TYPE_CHECKING:
    from studio.importing import Arrival

MOST_BYTES = 2 * 2**30


def build_import(frame: Frame, changed: gr.State, said: gr.HTML) -> gr.Dropdown:
    """Lay it out; returns the list of bases, which `offered_bases` fills."""
    with gr.Accordion("Bring in an adapter file", open=False, elem_id="library-import"):
        file = gr.File(label="A .safetensors file", file_types=[".safetensors"], type="filepath", height=120)
        report = gr.HTML()
        with gr.Row():
            name = gr.Textbox(label="Name", info="Letters, digits, - and _", max_length=64, min_width=140)
            class_word = gr.Textbox(label="What it is", info="One word: cat, mug, style", max_length=64, min_width=140)
        with gr.Row():
            trigger = gr.Textbox(
                label="Word that calls it", info="Empty: as the file says", max_length=60, min_width=140
            )
            base = gr.Dropdown(
                [("as the file says", "")], value="", label="Made for", info="The base it was trained on", min_width=140
            )
        take = gr.Button("Take it in", variant="primary")

    def look(path: str | None) -> tuple[str, Any, Any]:
        if not path:
            return "", gr.skip(), gr.skip()
        found = parts.arrived(checked_upload(path))
        words = found.report.triggers
        return parts.inspection(found), suggested_name(path), words[0] if words else ""

    def accept(path: str | None, name: str, word: str, trigger: str, base: str | None, changed: int) -> tuple[Any, ...]:
        from studio.importing import import_adapter

        concept, adapter = import_adapter(frame.service.library, arrival_of(frame, path, name, word, trigger, base))
        return parts.receipt(concept, adapter), changed + 1, None, "", "", "", ""

    file.change(frame.speaking(look), file, [report, name, trigger], **private(queue=True, show_progress="minimal"))
    begin(
        frame, take, accept, [file, name, class_word, trigger, base, changed],
        [said, changed, file, report, name, class_word, trigger], "Taking it in ...",
    )  # fmt: skip
    return base


def offered_bases(frame: Frame) -> dict[str, Any]:
    """The bases that an adapter may be said to be for."""
    return gr.update(choices=[("as the file says", ""), *parts.bases_of(frame.service.library)], value="")


def arrival_of(frame: Frame, path: str | None, name: str, word: str, trigger: str, base: str | None) -> "Arrival":
    """What is to be taken in, its words trimmed; raises UsageError for what is missing or unknown."""
    if not path:
        raise UsageError("There is no file yet.", "Drop a .safetensors file above.")
    if base and base not in [one for _, one in parts.bases_of(frame.service.library)]:
        raise UsageError("There is no such base.", "Choose one of the list.")
    if not word.strip():
        raise UsageError("What it is, is missing.", "One word says it: cat, mug, style.")
    from studio.importing import Arrival

    return Arrival(checked_upload(path), name.strip(), word.strip(), trigger.strip() or None, base or None)


def checked_upload(path: str) -> Path:
    """An uploaded file of the right kind and size; raises UsageError."""
    file = Path(path)
    if file.suffix.lower() != ".safetensors":
        raise UsageError("This is no .safetensors file.", "Other formats can run code when they are opened.")
    if (size := file.stat().st_size) > MOST_BYTES:
        raise UsageError(
            f"The file has {parts.size_words(size)}; at most {parts.size_words(MOST_BYTES)} are taken from a page.",
            "Bring it in on the terminal: studio library import FILE",
        )
    return file


def suggested_name(path: str) -> str:
    """A concept's name made of a file's."""
    plain = "".join(one if one.isascii() and (one.isalnum() or one in "-_") else "-" for one in Path(path).stem)
    return plain.strip("-_")[:40].lower()
