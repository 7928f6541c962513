"""The page Evaluate: concepts or methods scored on the same prompts and seeds, now and earlier."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.errors import UsageError
from studio.pipelines.methods import DEFAULT_METHOD, METHODS
from studio.ui.downloads import report_file
from studio.ui.evaluation_view import (
    METHODS_MATTER,
    OWN,
    QUESTIONS,
    SCENES_ASKED,
    amount,
    ask_of,
    evaluation,
    evaluations,
    of_kind,
)
from studio.ui.form_parts import begin, decimal, stop_button, whole
from studio.ui.frame import Frame
from studio.ui.page_parts import chosen_number, pick_job, picker, private, title

_LEAD = (
    "How well concepts or methods do, as numbers: every row of the table draws the same prompts from the same seeds."
    " On picturebook the studio's own judge looks at the pictures."
)


@dataclass(frozen=True)
class _Asked:
    """What the user gives."""

    names: gr.CheckboxGroup
    question: gr.Radio
    prompts: gr.Textbox
    methods: gr.CheckboxGroup
    seeds: gr.Slider
    seed: gr.Textbox
    steps: gr.Textbox
    guidance: gr.Textbox
    amount: gr.HTML
    go: gr.Button


def build(frame: Frame) -> None:
    """Lay the page out."""
    title("Evaluate", _LEAD)
    samples = gr.Button("Try with the samples: milo and rex", elem_id="evaluate-samples", visible=False)
    number = gr.Textbox(visible=False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            asked = _ask()
            gr.HTML('<h3 class="part">Evaluations</h3>')
            listed = picker("evaluations")
        with gr.Column(scale=4, min_width=340):
            with gr.Row(elem_classes="actions"):
                stop_button(frame, number, lambda job: _shown(frame, job), "evaluate-cancel")
                saves = {
                    name: gr.DownloadButton(label, size="sm", visible=False)
                    for name, label in (("report.html", "Save the report"), ("pictures.csv", "Save all scores (CSV)"))
                }
            result = gr.HTML(elem_id="evaluation")
    _bind(frame, asked, samples, number)
    listed.select(pick_job, None, number, **private())
    frame.watch(listed, lambda job: evaluations(frame.service, _shown(frame, job)), number)
    frame.watch(result, lambda job: evaluation(frame.service, _shown(frame, job)), number)
    for name, button in saves.items():
        frame.watch(button, lambda job, name=name: saved(frame, job, name), number)


def _ask() -> _Asked:
    names = gr.CheckboxGroup([], label="Concepts", elem_id="evaluate-names")
    question = gr.Radio(list(QUESTIONS.items()), value=SCENES_ASKED, label="What is asked", elem_id="evaluate-question")
    prompts = gr.Textbox(
        label="Prompts", lines=4, max_length=20_000, placeholder="a <milo> and a <rex> on grass", visible=False,
        info="One a line; <name> stands for a concept.", elem_id="evaluate-prompts",
    )  # fmt: skip
    methods = gr.CheckboxGroup(
        list(METHODS), value=[DEFAULT_METHOD, "merge"], label="Ways to compose", visible=False, info="A row for each."
    )
    seeds = gr.Slider(1, 16, value=4, step=1, label="Pictures of each prompt")
    told = gr.HTML()
    go = gr.Button("Start", variant="primary", elem_id="evaluate-go", elem_classes="go")
    with gr.Accordion("More", open=False), gr.Row():
        seed = gr.Textbox(label="First seed", placeholder="0", max_length=20)
        steps = gr.Textbox(label="Steps", placeholder="25", max_length=6)
        guidance = gr.Textbox(label="Guidance", placeholder="as suits the base", max_length=8)
    return _Asked(names, question, prompts, methods, seeds, seed, steps, guidance, told, go)


def _bind(frame: Frame, a: _Asked, samples: gr.Button, number: gr.Textbox) -> None:
    def refill() -> tuple[dict[str, Any], dict[str, Any]]:
        names = [one.name for one in frame.service.library.concepts()]
        return gr.update(choices=names), gr.update(visible=not names)

    def add_samples() -> tuple[dict[str, Any], dict[str, Any]]:
        frame.service.add_samples()
        names, button = refill()
        return names | {"value": ["milo", "rex"]}, button

    def start(
        names: list[str], question: str, prompts: str, methods: list[str], seeds: int, seed: str, steps: str,
        guidance: str,
    ) -> str:  # fmt: skip
        ask = ask_of(
            names, question, prompts, methods, seeds=seeds, seed=whole(seed, "First seed:"),
            steps=whole(steps, "Steps:"), guidance=decimal(guidance, "Guidance:"),
        )  # fmt: skip
        return str(frame.service.evaluate(ask).id)

    frame.on_show("evaluate", refill, [a.names, samples])
    samples.click(frame.speaking(add_samples), None, [a.names, samples], **private(queue=True))
    a.question.change(
        lambda question: (gr.update(visible=question == OWN), gr.update(visible=question in METHODS_MATTER)),
        a.question, [a.prompts, a.methods], **private(),
    )  # fmt: skip
    counted = [a.names, a.question, a.prompts, a.methods, a.seeds]
    gr.on([one.change for one in counted], lambda *given: note(amount(*given)), counted, a.amount, **private())
    begin(frame, a.go, start, [*counted, a.seed, a.steps, a.guidance], number)


def note(text: str) -> str:
    """A quiet line; `text` is the studio's own."""
    return f'<p class="note">{text}</p>' if text else ""


def saved(frame: Frame, job: str, name: str) -> dict[str, Any]:
    """The button that saves a file of the evaluation that is shown; hidden where there is none among the outputs."""
    number = _shown(frame, job)
    try:
        file = (
            None if number is None else report_file(frame.service.store.job(number), frame.service.home.outputs, name)
        )
    except UsageError:
        file = None
    return gr.update(visible=False) if file is None else gr.update(value=str(file), visible=True)


def _shown(frame: Frame, job: str) -> int | None:
    """The number of the evaluation that is shown: the chosen one, else the latest."""
    return chosen_number(job) or max((one.id for one in of_kind(frame.service)), default=None)
