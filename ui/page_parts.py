"""Small parts that several pages are built of."""

from typing import Any

import gradio as gr

# Clicks on anything in the list that carries data-job become one event; buttons bring the keyboard with them.
_PICK = """
element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-job]');
  if (target) trigger('select', { job: target.dataset.job });
});
"""


def picker(elem_id: str) -> gr.HTML:
    """A piece of HTML whose parts with `data-job` can be chosen; see `pick_job`."""
    return gr.HTML(elem_id=elem_id, js_on_load=_PICK)


def pick_job(event: gr.EventData) -> str:
    """The number that was chosen, as text."""
    number = chosen_number(str(event._data.get("job", "")))
    return "" if number is None else str(number)


def name_picker(elem_id: str, value: str = "") -> gr.HTML:
    """A piece of HTML whose parts with `data-name` can be chosen; see `named`."""
    return gr.HTML(value, elem_id=elem_id, js_on_load=_PICK.replace("job", "name"))


def named(event: gr.EventData) -> str:
    """The name that was chosen, as the browser says."""
    return str(event._data.get("name", ""))[:64]


def chosen_number(text: str | None) -> int | None:
    """A job's number as the browser keeps it; None for anything else."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else None


def title(name: str, lead: str) -> gr.HTML:
    """The heading of a page."""
    return gr.HTML(f'<h2 class="page-title">{name}</h2><p class="lead">{lead}</p>')


def private(**more: Any) -> dict[str, Any]:
    """How handlers are bound that only the page itself calls."""
    return {"queue": False, "show_progress": "hidden", "api_visibility": "private"} | more
