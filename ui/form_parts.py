"""What forms have in common: numbers that may be left out, and the button that begins a job."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from studio.errors import UsageError
from studio.ui.frame import Frame
from studio.ui.page_parts import private


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
