"""The page Stylize: the content of one concept in the style of another."""

from typing import Any

import gradio as gr

from studio.errors import UsageError
from studio.ui.asks import StylizeAsk
from studio.ui.form_parts import begin, decimal, own_number, stop_button, whole
from studio.ui.fragments import message
from studio.ui.frame import Frame
from studio.ui.page_parts import private, title
from studio.ui.stylizing import GridAsk, can_be_stylized, sentence, stylized, submit_grid, well

_LEAD = (
    "What a concept is, in the look of another. It works on SDXL and on what is built like it, as picturebook is: there"
    " one block of the base carries content, another style. Of SD 1.5 no such blocks are known."
)
_WORDS = ("words only", "")


def build(frame: Frame) -> None:
    """Lay the page out."""

    def shown(job: str) -> int | None:
        return own_number(frame.service, job, "stylize")

    title("Stylize", _LEAD)
    samples = gr.Button("Try with the samples: milo in neon", elem_id="stylize-samples", visible=False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            with gr.Row(equal_height=True):
                content, content_strength = _build_well(frame, "content")
                style, style_strength = _build_well(frame, "style")
            left_out = gr.HTML()
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_length=2000, elem_id="stylize-prompt", placeholder="a <milo> in <neon>",
                info="<name> stands for a concept. The content has to be named.",
            )  # fmt: skip
            with gr.Row():
                count = gr.Radio([1, 2, 4], value=1, label="Pictures", elem_classes="slim")
                seed = gr.Textbox(label="Seed", placeholder="by chance", max_length=20)
            grid = gr.Checkbox(
                label="All strengths side by side", elem_id="stylize-grid",
                info="Nine pictures of one seed: content and style, each at 0.5, 1 and 1.5.",
            )  # fmt: skip
            go = gr.Button("Stylize", variant="primary", elem_id="stylize-go", elem_classes="go")
            with gr.Accordion("More", open=False):
                with gr.Row():
                    steps = gr.Textbox(label="Steps", placeholder="25", max_length=6)
                    guidance = gr.Textbox(label="Guidance", placeholder="as suits the base", max_length=8)
                negative = gr.Textbox(label="What not to draw", max_length=2000)
        with gr.Column(scale=3, min_width=320):
            result, number = gr.HTML(elem_id="stylize-result"), gr.Textbox(visible=False)
            stop_button(frame, number, shown, "stylize-cancel")
    written = gr.Textbox(visible=False)
    filled = [content, style, left_out, samples]
    frame.on_show("stylize", lambda: offered(frame), filled)
    samples.click(frame.speaking(lambda: with_samples(frame)), None, filled, **private(queue=True))
    for one in (content, style):
        one.change(frame.speaking(lambda *given: suggested(frame, *given)), [content, style, prompt, written],
                   [prompt, written], **private(queue=True))  # fmt: skip
    given = [
        content, style, content_strength, style_strength, prompt, count, seed, grid, steps, guidance, negative,
    ]  # fmt: skip
    begin(frame, go, lambda *values: started(frame, *values), given, number)
    frame.watch(result, lambda job: stylized(frame.service, shown(job)), number)


def _build_well(frame: Frame, role: str) -> tuple[gr.Dropdown, gr.Slider]:
    """(what is chosen for a role, how strongly it acts)."""
    with gr.Column(min_width=150, elem_classes="well-box"):
        # Custom values, so that a tab may still say what another took away: the order then refuses it.
        chosen = gr.Dropdown(
            [_WORDS], value="", label=f"{role.capitalize()} from", elem_id=f"stylize-{role}", allow_custom_value=True
        )
        seen = gr.HTML(well(frame.service, None, role))
        strength = gr.Slider(0, 1.5, value=1, step=0.05, label="Strength")
    chosen.change(frame.speaking(lambda name: well(frame.service, name, role)), chosen, seen, **private(queue=True))
    return chosen, strength


def offered(frame: Frame) -> tuple[dict[str, Any], dict[str, Any], str, dict[str, Any]]:
    """What both lists offer, a sentence on those that cannot be stylized, and the samples where there is nothing."""
    everyone = frame.service.library.concepts()
    names = [one.name for one in everyone if can_be_stylized(one)]
    choices = gr.update(choices=[_WORDS, *((name, name) for name in names)])
    others = [one.name for one in everyone if not can_be_stylized(one)]
    said = message(f"Not offered, as they are for SD 1.5: {', '.join(others)}.") if others else ""
    return choices, choices, said, gr.update(visible=not everyone)


def with_samples(frame: Frame) -> tuple[dict[str, Any], dict[str, Any], str, dict[str, Any]]:
    """The same with the sample concepts in the library, and two of them chosen."""
    frame.service.add_samples()
    content, style, left_out, samples = offered(frame)
    return content | {"value": "milo"}, style | {"value": "neon"}, left_out, samples


def suggested(frame: Frame, content: str | None, style: str | None, prompt: str, written: str) -> tuple[str, str]:
    """(the prompt, what the page wrote by itself): a prompt that a user wrote stays."""
    library = frame.service.library
    own = sentence(library.find(content) if content else None, library.find(style) if style else None)
    own = own if content or style else ""
    return (own if prompt in ("", written) else prompt), own


def started(
    frame: Frame,
    content: str | None,
    style: str | None,
    content_strength: float,
    style_strength: float,
    prompt: str,
    count: int,
    seed: str,
    grid: bool,
    steps: str,
    guidance: str,
    negative: str,
) -> str:
    """The number of the job that draws what the fields say; raises UsageError for what cannot be drawn."""
    if not content and not style:
        raise UsageError("There is neither content nor style.", "Choose at least one of the two.")
    given: dict[str, Any] = {
        "prompt": prompt.strip(), "negative_prompt": negative.strip() or None, "content": content or None,
        "style": style or None, "seed": whole(seed, "Seed:"), "steps": whole(steps, "Steps:"),
        "guidance": decimal(guidance, "Guidance:"),
    }  # fmt: skip
    if grid:
        return str(submit_grid(frame.service, GridAsk.read(given)).id)
    strengths = {
        "content_strength": content_strength if content else None, "style_strength": style_strength if style else None
    }  # fmt: skip
    return str(frame.service.stylize(StylizeAsk.read(given | strengths | {"count": count})).id)
