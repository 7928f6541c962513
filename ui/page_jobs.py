"""The page Jobs: what waits, runs and has ended, and everything about the one that is chosen."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.errors import UsageError
from studio.job_records import ENDED, STATES
from studio.jobs import Job
from studio.ui import fragments
from studio.ui.frame import Frame
from studio.ui.page_parts import chosen_number, pick_job, picker, private
from studio.ui.service import Service

_KINDS = [("all", "all"), ("still open", "open"), ("trainings", "train"), ("pictures", "compose")]
_NONE = '<div class="empty"><strong>Nothing to show yet</strong>Whatever takes time is listed here.</div>'
_GONE = '<div class="empty"><strong>This job is no longer listed</strong>Choose another on the list.</div>'
Action = Callable[[Service, int], Job | None]
_ACTIONS: tuple[
    tuple[str, str, tuple[str, ...], Action], ...
] = (  # id, label, states in which it is of use, what it does
    ("cancel", "Cancel", ("waiting", "running", "paused"), lambda service, job: service.store.cancel(job)),
    ("pause", "Pause", ("waiting", "running"), lambda service, job: service.store.pause(job)),
    ("again", "Go on / retry", ("paused", "failed", "cancelled", "interrupted"), Service.again),
    ("clone", "Do it again", STATES, Service.clone),
    ("earlier", "Earlier", ("waiting",), lambda service, job: service.store.move(job, -1)),
    ("later", "Later", ("waiting",), lambda service, job: service.store.move(job, 1)),
    ("forget", "Take off the list", ENDED, lambda service, job: service.store.forget(job)),
)


def build(frame: Frame) -> None:
    """Lay the page out, and let its parts follow the jobs."""
    service = frame.service
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            shown = gr.Radio(_KINDS, value="all", label="Show", elem_classes="slim")
            listed = picker("jobs-list")
        with gr.Column(scale=3, min_width=320):
            with gr.Row(elem_classes="actions"):
                buttons = [
                    gr.Button(
                        label, size="sm", elem_id=f"job-{name}", variant="stop" if name == "cancel" else "secondary"
                    )
                    for name, label, _, _ in _ACTIONS
                ]
            smoothing = gr.Slider(0, 0.99, value=0.9, step=0.01, label="Smoothing of the loss", elem_classes="slim")
            view = gr.HTML(elem_id="job-view")
            first = gr.Button("Compose a first picture", elem_id="jobs-first", visible=False)
    seen = gr.Textbox(visible=False)  # the first of the list may be another when a click arrives
    frame.watch(seen, lambda job: _number(_looked_at(frame, job)), frame.job)
    for button, (_, _, states, does) in zip(buttons, _ACTIONS, strict=True):
        frame.watch(button, lambda job, states=states: _usable(_looked_at(frame, job), states), frame.job)
        button.click(_doing(frame, does), seen, frame.job, **private(queue=True))
    frame.watch(smoothing, lambda job: gr.update(visible=_kind(_looked_at(frame, job)) == "train"), frame.job)
    frame.watch(listed, lambda job, kind: fragments.queue(service, chosen_number(job), kind), frame.job, shown)
    frame.watch(view, lambda job, smooth: _view(frame, job, smooth), frame.job, smoothing)
    frame.watch(first, lambda: gr.update(visible=not service.store.jobs(limit=1)))
    first.click(lambda: "compose", None, frame.page, **private())
    listed.select(pick_job, None, frame.job, **private())


def _view(frame: Frame, job: str, smooth: float) -> str:
    found = _looked_at(frame, job)
    if found is None:
        return _GONE if chosen_number(job) else _NONE
    return fragments.job_view(frame.service, found.id, smooth)


def _usable(job: Job | None, states: tuple[str, ...]) -> dict[str, Any]:
    return gr.update(interactive=job is not None and job.state in states)


def _number(job: Job | None) -> str:
    return "" if job is None else str(job.id)


def _kind(job: Job | None) -> str:
    return "" if job is None else job.kind


def _doing(frame: Frame, does: Action) -> Callable[[str], str]:
    def act(job: str) -> str:
        number = chosen_number(job)
        if number is None:
            raise UsageError("No job is chosen.", "Choose one on the list.")
        after = does(frame.service, number)
        return job if after is None else str(after.id)  # one that is gone stays chosen: a second click hits no other

    return frame.speaking(act)


def _looked_at(frame: Frame, job: str) -> Job | None:
    """The job that is chosen, else the first of the list."""
    number = chosen_number(job)
    if number is not None:
        return fragments.found(frame.service, number)
    return next(iter(frame.service.store.jobs(limit=1)), None)
