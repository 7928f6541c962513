"""What forms have in common: numbers that may be left out, and the buttons that begin a job and cancel it."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from studio.errors import UsageError
from studio.ui.fragments import found
from studio.ui.frame import Frame
from studio.ui.page_parts import chosen_number, private
from studio.ui.service import Service


def begin(
    frame: Frame,
    button: gr.Button,
    start: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Any,
    meanwhile: str = "Checking ...",
) -> None:
    """Let `button` do `start`, and say `meanwhile` that it is at it: it may take seconds."""
    # Queued, as everything that can refuse: Gradio 6.31 shows no error of an event that is not.
    begun = button.click(None, None, button, js=_saying(meanwhile, usable=False)).then(
        frame.speaking(start), list(inputs), outputs, **private(queue=True)
    )
    for ended in (begun.success, begun.failure):  # `then` does not come after a refusal
        ended(None, None, button, js=_saying(button.value, usable=True))


def _saying(text: str, *, usable: bool) -> str:
    """What the browser does to a button by itself."""
    return f"() => ({json.dumps({'__type__': 'update', 'value': text, 'interactive': usable})})"


def own_number(service: Service, job: str, kind: str) -> int | None:
    """The number of a page's own job: the one it began, else the latest of its kind, which a reload finds again."""
    own = chosen_number(job)
    if own is not None:
        return own
    return max((one.id for one in service.store.jobs(limit=100) if one.kind == kind), default=None)


def stop_button(frame: Frame, number: gr.Textbox, shown: Callable[[str], int | None], elem_id: str) -> None:
    """A button that cancels the job that a page shows, while it is open; `shown` finds its number by what `number`
    holds."""
    seen = gr.Textbox(visible=False)  # what the user sees, which need not be what the server would find by now
    stop = gr.Button("Cancel", size="sm", variant="stop", visible=False, elem_id=elem_id)

    def open_now(job: str) -> dict[str, Any]:
        one = found(frame.service, shown(job))
        return gr.update(visible=one is not None and not one.final)

    def cancel(job: str) -> None:
        if (chosen := chosen_number(job)) is not None:
            frame.service.store.cancel(chosen)

    frame.watch(seen, lambda job: str(shown(job) or ""), number)
    frame.watch(stop, open_now, number)
    stop.click(frame.speaking(cancel), seen, None, **private(queue=True))


def whole(text: str | None, what: str) -> int | None:
    """A whole number of at least 0 as it was typed, None for nothing; raises UsageError for what is none.

    Typed, as an empty gr.Number of Gradio 6.31 comes to the server as 0.
    """
    text = (text or "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise UsageError(f"{what} {text[:20]!r} is no whole number.", "Leave it empty, or write one of at least 0.")
    return int(text)


def decimal(text: str | None, what: str) -> float | None:
    """A number as it was typed, None for nothing; raises UsageError for what is none."""
    text = (text or "").strip().replace(",", ".")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{what} {text[:20]!r} is no number.", "Leave it empty, or write one such as 5 or 2.5.")
    return value
