"""The page Compose: several concepts, a box for each if one likes, a prompt, and pictures beside plain merging."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.pipelines.methods import DEFAULT_METHOD, METHODS
from studio.ui.canvas import LayoutCanvas, LayoutValue
from studio.ui.compose_fields import (
    FIELDS,
    SHAPES,
    asked_for,
    canvas_for,
    chips,
    cost,
    from_rows,
    inserted,
    library_names,
    restored,
    rows_of,
    sentence,
    strengths_for,
)
from studio.ui.composed import composed
from studio.ui.form_parts import begin, own_number, stop_button
from studio.ui.frame import Frame
from studio.ui.page_parts import name_picker, private, title

_COLUMNS = ["concept", "left %", "top %", "right %", "bottom %"]


@dataclass(frozen=True)
class ComposePage:
    """The parts that other pages fill in."""

    concepts: gr.Dropdown
    prompt: gr.Textbox


def build(frame: Frame) -> ComposePage:
    """Lay the page out."""

    def shown(job: str) -> int | None:
        return own_number(frame.service, job, "compose")

    title("Compose", "Several of your concepts in one picture, each itself.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            asked = _ask(frame)
        with gr.Column(scale=4, min_width=320):
            result = gr.HTML(elem_id="compose-result")
            number = gr.Textbox(visible=False)
            stop_button(frame, number, shown, "compose-cancel")
            with gr.Accordion("Draw again from a picture", open=False):
                dropped = gr.File(
                    label="A PNG that the studio composed", file_types=[".png"], height=110, elem_id="compose-restore"
                )
                said = gr.HTML(elem_id="compose-restored")
    frame.watch(result, lambda job: composed(frame.service, shown(job)), number)
    _bind(frame, asked, number, dropped, said)
    return ComposePage(asked.concepts, asked.prompt)


@dataclass(frozen=True)
class _Asked:
    """What the user gives."""

    concepts: gr.Dropdown
    chips: gr.HTML
    shape: gr.Radio
    canvas: LayoutCanvas
    table: gr.Dataframe
    prompt: gr.Textbox
    written: gr.Textbox  # the prompt that the page wrote by itself, kept where the prompt is: see page_train
    method: gr.Dropdown
    cost: gr.HTML
    count: gr.Radio
    seed: gr.Textbox
    beside: gr.Checkbox
    styles: gr.Dropdown
    strengths: gr.Dataframe
    steps: gr.Textbox
    guidance: gr.Textbox
    negative: gr.Textbox
    best_of: gr.Slider
    go: gr.Button
    samples: gr.Button


def _ask(frame: Frame) -> _Asked:
    names = library_names(frame.service.library)
    samples = gr.Button("Try with the samples: milo and rex", elem_id="compose-samples", visible=not names)
    concepts = gr.Dropdown(
        names, label="Concepts in the picture", multiselect=True, max_choices=8, elem_id="compose-concepts",
        info="From the library; 1 to 8.",
    )  # fmt: skip
    pressed = name_picker("compose-chips")
    prompt = gr.Textbox(
        label="Prompt", lines=2, placeholder="a <milo> and a <rex> on grass", elem_id="compose-prompt",
        info="<name> stands for a concept; press a chip to put it in.", max_length=2000,
    )  # fmt: skip
    with gr.Row():
        shape = gr.Radio(list(SHAPES), value=SHAPES[0], label="Shape", elem_classes="slim")
        count = gr.Radio([1, 2, 4], value=1, label="Pictures", elem_classes="slim", elem_id="compose-count")
    canvas = LayoutCanvas(elem_id="compose-canvas")
    with gr.Accordion("Boxes as a table", open=False):
        table = gr.Dataframe(
            headers=_COLUMNS, datatype=["str", "number", "number", "number", "number"], type="array",
            column_count=5, row_count=0, interactive=True, label="Boxes",
            elem_id="compose-table",
        )  # fmt: skip
    go = gr.Button("Compose", variant="primary", elem_id="compose-go", elem_classes="go")
    with gr.Accordion("Method and more", open=False, elem_id="compose-more"):
        method = gr.Dropdown(list(METHODS), value=DEFAULT_METHOD, label="Method")
        costs = gr.HTML(cost(DEFAULT_METHOD))
        beside = gr.Checkbox(True, label="Also by plain merging, to compare", elem_id="compose-beside")
        with gr.Row():
            seed = gr.Textbox(label="Seed", placeholder="by chance", max_length=20)
            steps = gr.Textbox(label="Steps", placeholder="25", max_length=6)
            guidance = gr.Textbox(label="Guidance", placeholder="as suits the base", max_length=8)
        negative = gr.Textbox(label="What not to draw", max_length=2000)
        best_of = gr.Slider(1, 8, value=1, step=1, label="Best of so many candidates")
        styles = gr.Dropdown(names, label="Styles that ride along", multiselect=True, max_choices=4)
        strengths = gr.Dataframe(
            headers=["concept", "strength"], datatype=["str", "number"], type="array", column_count=2,
            row_count=0, interactive=True, label="Strengths",
        )  # fmt: skip
    return _Asked(
        concepts, pressed, shape, canvas, table, prompt, gr.Textbox(visible=False), method, costs, count, seed, beside,
        styles, strengths, steps, guidance, negative, best_of, go, samples,
    )  # fmt: skip


def _bind(frame: Frame, a: _Asked, number: gr.Textbox, dropped: gr.File, said: gr.HTML) -> None:
    service = frame.service

    def chosen(
        names: list[str], shape: str, value: LayoutValue, prompt: str, written: str, strengths: list[list[Any]]
    ) -> list[Any]:
        """The canvas, table, chips, prompt and strengths for other concepts or another shape."""
        names = [name for name in names or [] if name in library_names(service.library)]
        fresh = canvas_for(service.library, names, shape, value)
        own = sentence(names)
        shown = own if prompt in ("", written) else prompt
        return [fresh, rows_of(fresh), chips(names), shown, own, strengths_for(strengths, names, value)]

    looked_at = [a.concepts, a.shape, a.canvas, a.prompt, a.written, a.strengths]
    outputs = [a.canvas, a.table, a.chips, a.prompt, a.written, a.strengths]
    for trigger in (a.concepts.input, a.shape.input):
        trigger(frame.speaking(chosen), looked_at, outputs, **private(queue=True))
    a.canvas.layout_changed(rows_of, a.canvas, a.table, queue=False, api_visibility="private")
    a.table.input(frame.speaking(from_rows), [a.table, a.canvas], a.canvas, **private(queue=True))
    a.chips.select(inserted, a.prompt, a.prompt, **private())
    a.method.change(cost, a.method, a.cost, **private())

    def start(*values: Any) -> tuple[str, str]:
        job = service.compose(asked_for(service.library, *values))
        return str(job.id), str(job.id)

    given = [
        a.prompt, a.concepts, a.canvas, a.shape, a.method, a.count, a.seed, a.beside, a.styles, a.strengths, a.steps,
        a.guidance, a.negative, a.best_of,
    ]  # fmt: skip
    begin(frame, a.go, start, given, [number, frame.job])

    def refill() -> list[Any]:
        """What is in the library now."""
        names = library_names(service.library)
        return [gr.Dropdown(choices=names), gr.Dropdown(choices=names), gr.Button(visible=not names)]

    def add_samples() -> list[Any]:
        added = service.add_samples()
        subjects = [name for name in added if service.library.find(name).class_word != "style"]
        names = library_names(service.library)
        return [gr.Dropdown(choices=names, value=subjects), gr.Dropdown(choices=names), gr.Button(visible=False)]

    filled = [a.concepts, a.styles, a.samples]
    frame.on_show("compose", refill, filled)
    added = a.samples.click(frame.speaking(add_samples), None, filled, **private(queue=True))
    added.success(frame.speaking(chosen), looked_at, outputs, **private(queue=True))
    refilled = [said if name == "said" else getattr(a, name) for name in FIELDS]
    dropped.upload(
        frame.speaking(lambda file: restored(service.library, file)), dropped, refilled, **private(queue=True)
    )
