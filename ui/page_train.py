"""The page Train: from pictures to a concept in four steps."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from studio.datasets import samples
from studio.errors import StudioError
from studio.folders import SUFFIXES
from studio.ui.form_parts import begin
from studio.ui.fragments import message
from studio.ui.frame import Frame
from studio.ui.page_parts import name_picker, named, private, title
from studio.ui.service import SAMPLE, TrainAsk
from studio.ui.train_fields import (
    CARDS,
    changed_settings,
    checks,
    command_of,
    method_cards,
    picture_table,
    settings_table,
    train_ask,
    with_edits,
)

_UPLOADED = [*sorted(SUFFIXES), ".txt", ".zip"]
_QUALITY = [("Quick", "quick"), ("Normal", "normal"), ("Best", "best")]


@dataclass(frozen=True)
class _Fields:
    """What the user gives; `dataset` is the name of the set of pictures."""

    dataset: gr.Textbox
    name: gr.Textbox
    class_word: gr.Textbox
    trigger: gr.Textbox
    base: gr.Textbox
    method: gr.Textbox
    preset: gr.Radio
    overwrite: gr.Checkbox
    settings: gr.Dataframe
    # The settings before the user changed any, as JSON, kept where they are compared: see _bind_pictures.
    usual: gr.Textbox = field(default_factory=lambda: gr.Textbox("[]", visible=False))

    def all(self) -> list[Any]:
        """In the order in which handlers take them."""
        return list(vars(self).values())


def build(frame: Frame) -> None:
    """Lay the page out."""
    service = frame.service
    title("Train", "From a handful of pictures to a concept that you can name in a prompt.")
    with gr.Walkthrough(selected=0, elem_id="train-steps") as steps:
        with gr.Step("Pictures", id=0):
            dataset = gr.Textbox(visible=False)
            with gr.Row():
                files = gr.File(
                    label="Pictures, captions (.txt) or a .zip of them", file_count="multiple", file_types=_UPLOADED,
                    height=150, elem_id="train-files",
                )  # fmt: skip
                sample = gr.Dropdown(
                    samples(), value=None, label="Or a sample set", info="Drawings that come with the studio",
                    elem_id="train-sample",
                )  # fmt: skip
            table = gr.HTML(picture_table(service, "", None), elem_id="train-pictures")
            to_concept = gr.Button("Next: the concept", variant="primary", elem_classes="go")
        with gr.Step("Concept", id=1):
            with gr.Row():
                name = gr.Textbox(
                    label="Name", info="You call it <name> in prompts", max_length=64, elem_id="train-name"
                )
                class_word = gr.Textbox(
                    label="What it is", info="One word that the base knows: cat, mug, house; style for a style",
                    max_length=64, elem_id="train-class",
                )  # fmt: skip
            with gr.Accordion("More", open=False):
                trigger = gr.Textbox(label="Trigger word", info="Chosen by itself where it is empty", max_length=64)
                base = gr.Textbox(
                    label="Base", info="picturebook (embedded) where it is empty; sdxl, sd15 or a hub id",
                    max_length=500,
                )  # fmt: skip
                overwrite = gr.Checkbox(False, label="Replace a concept of this name")
            to_recipe = gr.Button("Next: the recipe", variant="primary", elem_classes="go")
        with gr.Step("Recipe", id=2):
            method = gr.Textbox("lora", visible=False)
            cards = name_picker("train-methods", method_cards(service, "lora", None))
            preset = gr.Radio(_QUALITY, value="normal", label="Quality", elem_id="train-preset")
            with gr.Accordion("Expert: every setting", open=False):
                gr.HTML('<p class="note">Change a value, as JSON; the others stay as the quality above has them.</p>')
                settings = gr.Dataframe(
                    headers=["setting", "value"], datatype=["str", "str"], type="array", column_count=2,
                    interactive=True, show_search="filter", max_height=360, static_columns=[0], label="Settings",
                )  # fmt: skip
            to_check = gr.Button("Next: check", variant="primary", elem_classes="go")
        with gr.Step("Start", id=3):
            listed = gr.HTML(elem_id="train-checks")
            command = gr.Textbox(label="The same as a command", lines=2, interactive=False, buttons=["copy"],
                                 elem_classes="copy", elem_id="train-command")  # fmt: skip
            start = gr.Button("Start training", variant="primary", elem_classes="go", elem_id="train-start")
    fields = _Fields(dataset, name, class_word, trigger, base, method, preset, overwrite, settings)
    _bind_pictures(frame, fields, files, sample, table)
    _bind_recipe(frame, fields, cards)
    for button, step in ((to_concept, 1), (to_recipe, 2)):
        button.click(lambda step=step: gr.Walkthrough(selected=step), None, steps, **private())
    to_recipe.click(_usual(frame), fields.all(), [settings, fields.usual, cards], **private())
    to_check.click(_checked(frame), fields.all(), [steps, listed, command], **private())
    begin(frame, start, _started(frame), fields.all(), [frame.job, frame.page])


def _bind_pictures(frame: Frame, f: _Fields, files: gr.File, sample: gr.Dropdown, table: gr.HTML) -> None:
    service = frame.service

    # The sample whose name and class the page wrote by itself. Kept by the browser, as those two are: the list tells of
    # a choice twice, and a state of the server would by then be newer than what it is compared with.
    written = gr.Textbox(visible=False)

    def own(name: str | None, word: str | None, before: str, now: str) -> list[Any]:
        """Name and class as sample `now` has them, where the user wrote nothing else than sample `before` has."""
        given = zip((name, word), _sample_words(before), _sample_words(now), strict=True)
        return [*(after if not text or text == was else text for text, was, after in given), now]

    def uploaded(paths: list[str] | None, base: str, name: str | None, word: str | None, before: str) -> list[Any]:
        words = own(name, word, before, "")
        if not paths:
            return ["", gr.skip(), picture_table(service, "", None), *words]
        dataset = service.datasets.add([Path(one) for one in paths])
        return [dataset, None, picture_table(service, dataset, base or None), *words]

    def sampled(sample: str | None, name: str | None, word: str | None, before: str) -> list[Any]:
        if not sample:
            return [gr.skip()] * 5
        dataset = f"{SAMPLE}{sample}"
        return [dataset, picture_table(service, dataset, None), *own(name, word, before, sample)]

    called = [f.name, f.class_word, written]
    gr.on(
        [files.upload, files.delete, files.clear], frame.speaking(uploaded), [files, f.base, *called],
        [f.dataset, sample, table, *called], **private(queue=True),
    )  # fmt: skip
    sample.input(frame.speaking(sampled), [sample, *called], [f.dataset, table, *called], **private(queue=True))


def _sample_words(sample: str) -> tuple[str, str]:
    """Name and class of a sample, both "" for none."""
    from studio.picturebook import SAMPLE_SUBJECTS

    subject = SAMPLE_SUBJECTS.get(sample)
    return sample, "" if not sample else subject.kind if subject else "style"


def _bind_recipe(frame: Frame, f: _Fields, cards: gr.HTML) -> None:
    def chosen(event: gr.EventData) -> Any:
        name = named(event)
        return name if name in {card.name for card in CARDS} else gr.skip()

    cards.select(chosen, None, f.method, **private())
    for changed in (f.method, f.preset):
        changed.change(_usual(frame), f.all(), [f.settings, f.usual, cards], **private())


def _values(values: tuple[Any, ...]) -> dict[str, Any]:
    names = ("dataset", "name", "class_word", "trigger", "base", "method", "preset", "overwrite")
    given = dict(zip(names, values, strict=False))
    return {key: value.strip() if isinstance(value, str) else value for key, value in given.items()}


def _usual(frame: Frame) -> Any:
    """The settings and cards for the method and quality that are chosen, as far as there is enough for a recipe."""

    def fill(*values: Any) -> list[Any]:
        given = _values(values)
        try:
            recipe = frame.service.recipe(train_ask(given, {}))
        except StudioError:
            return [gr.skip(), gr.skip(), method_cards(frame.service, given["method"], None)]
        *_, rows, before = values
        usual = settings_table(recipe)
        edited = with_edits(rows, json.loads(before), usual)
        return [edited, json.dumps(usual), method_cards(frame.service, given["method"], recipe)]

    return fill


def _asked(frame: Frame, values: tuple[Any, ...]) -> TrainAsk:
    """The training that the fields ask for; raises UsageError."""
    given = _values(values)
    plain = train_ask(given, {})
    *_, rows, _ = values
    return train_ask(given, changed_settings(rows, frame.service.recipe(plain)))


def _checked(frame: Frame) -> Any:
    def check(*values: Any) -> list[Any]:
        try:
            ask = _asked(frame, values)
            rows, _ = checks(frame.service, ask)
            return [gr.Walkthrough(selected=3), rows, command_of(frame.service, ask)]
        except StudioError as error:
            return [gr.Walkthrough(selected=3), message(error.problem, error.remedy, "bad"), ""]

    return check


def _started(frame: Frame) -> Any:
    def begun(*values: Any) -> tuple[str, str]:
        job = frame.service.train(_asked(frame, values))
        return str(job.id), "jobs"

    return begun
