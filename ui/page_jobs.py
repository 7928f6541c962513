"""The page Jobs: what waits, runs and has ended, and everything about the one that is chosen."""

from typing import Any

import gradio as gr

from studio.errors import UsageError
from studio.job_records import ENDED, STATES
from studio.ui import fragments
from studio.ui.frame import Frame, speaking
from studio.ui.page_parts import chosen_number, pick_job, picker

_KINDS = [("all", "all"), ("still open", "open"), ("trainings", "train"), ("pictures", "compose")]
_STEP = 1


def build(frame: Frame) -> None:
    """Lay the page out, and let its parts follow the jobs."""
    service = frame.service
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            shown = gr.Radio(_KINDS, value="all", label="Show", elem_classes="slim")
            listed = picker("jobs-list")
        with gr.Column(scale=3, min_width=320):
            with gr.Row(elem_classes="actions"):
                cancel = gr.Button("Cancel", variant="stop", size="sm", elem_id="job-cancel")
                pause = gr.Button("Pause", size="sm", elem_id="job-pause")
                again = gr.Button("Go on / retry", size="sm", elem_id="job-again")
                clone = gr.Button("Do it again", size="sm", elem_id="job-clone")
                earlier = gr.Button("Earlier", size="sm")
                later = gr.Button("Later", size="sm")
                forget = gr.Button("Take off the list", size="sm")
            smoothing = gr.Slider(0, 0.99, value=0.9, step=0.01, label="Smoothing of the loss", elem_classes="slim")
            view = gr.HTML(elem_id="job-view")

    def render(job: str, smooth: float) -> str:
        number = chosen_number(job) or _latest(frame)
        if number is None:
            return '<div class="empty"><strong>Nothing to show yet</strong>Choose a job on the left.</div>'
        try:
            return fragments.job_view(service, number, smooth)
        except UsageError as error:
            return fragments.message(error.problem, error.remedy, "warn")

    def follow(button: gr.Button, *states: str) -> None:
        """Let a button be of use while the job is in one of `states`."""

        def able(job: str) -> Any:
            number = chosen_number(job) or _latest(frame)
            found = service.store.jobs() if number is None else [service.store.job(number)]
            return gr.update(interactive=any(one.state in states for one in found[:1]))

        frame.watch(button, able, frame.job)

    follow(cancel, "waiting", "running", "paused")
    follow(pause, "waiting", "running")
    follow(again, "paused", "failed", "cancelled", "interrupted")
    follow(clone, *STATES)
    follow(earlier, "waiting")
    follow(later, "waiting")
    follow(forget, *ENDED)
    frame.watch(smoothing, lambda job: gr.update(visible=_is_training(frame, job)), frame.job)
    frame.watch(listed, lambda job, kind: fragments.queue(service, chosen_number(job), kind), frame.job, shown)
    frame.watch(view, render, frame.job, smoothing)
    listed.select(pick_job, None, frame.job, queue=False, show_progress="hidden", api_visibility="private")

    def act(button: gr.Button, do, **named) -> None:  # noqa: ANN001, ANN003
        button.click(
            speaking(lambda job: do(_wanted(frame, job), **named)), frame.job, frame.job, queue=False,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    store = service.store
    act(cancel, lambda number: str(store.cancel(number).id))
    act(pause, lambda number: str(store.pause(number).id))
    act(again, lambda number: str(service.again(number).id))
    act(clone, lambda number: str(service.clone(number).id))
    act(earlier, lambda number: str(store.move(number, -_STEP).id))
    act(later, lambda number: str(store.move(number, _STEP).id))
    act(forget, lambda number: store.forget(number) or "")


def _is_training(frame: Frame, job: str) -> bool:
    number = chosen_number(job) or _latest(frame)
    return number is not None and frame.service.store.job(number).kind == "train"


def _latest(frame: Frame) -> int | None:
    jobs = frame.service.store.jobs(limit=1)
    return jobs[0].id if jobs else None


def _wanted(frame: Frame, job: str) -> int:
    number = chosen_number(job) or _latest(frame)
    if number is None:
        raise UsageError("No job is chosen.", "Choose one on the left.")
    return number
