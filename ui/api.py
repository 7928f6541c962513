"""The API: named endpoints that answer at once, long work with the number of its job."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from studio.errors import StudioError, UsageError
from studio.job_records import STATES
from studio.jobs import Job
from studio.ui.asks import ComposeAsk, EvaluateAsk, StylizeAsk
from studio.ui.frame import Frame
from studio.ui.page_parts import chosen_number
from studio.ui.service import TERMINAL_ONLY, Service, TrainAsk


def offer(frame: Frame) -> None:
    """Add the endpoints to the Blocks at hand."""
    service = frame.service

    def train_start(
        dataset: str, name: str, class_word: str, method: str = "lora", preset: str = "normal",
        settings: dict[str, Any] | None = None, overwrite: bool = False,
    ) -> int:  # fmt: skip
        """Train a concept from an uploaded set of pictures, or from `sample:NAME`; returns the job's number."""
        given = {
            "dataset": dataset, "name": name, "class_word": class_word, "method": method, "preset": preset,
            "settings": settings or {}, "overwrite": overwrite,
        }  # fmt: skip
        return service.train(TrainAsk.read(given)).id

    def compose(request: dict[str, Any]) -> int:
        """Draw several concepts in one picture; returns the job's number."""
        return service.compose(ComposeAsk.read(request)).id

    def stylize(request: dict[str, Any]) -> int:
        """Draw the content of one concept in the style of another; returns the job's number."""
        return service.stylize(StylizeAsk.read(request)).id

    def evaluate(request: dict[str, Any]) -> int:
        """Score concepts or methods; returns the job's number."""
        return service.evaluate(EvaluateAsk.read(request)).id

    def jobs_list(state: str = "") -> list[dict[str, Any]]:
        """The jobs, running and waiting ones first; `state` chooses those in one state."""
        return [brief(job) for job in service.store.jobs(_states(state))]

    def job_show(job: int) -> dict[str, Any]:
        """Everything about one job but where its files lie; its pictures are at /studio/pictures/JOB/N."""
        return told(service, service.store.job(number_of(job)))

    def job_cancel(job: int) -> dict[str, Any]:
        """Cancel a job; one that has ended stays as it is."""
        return brief(service.store.cancel(number_of(job)))

    def job_pause(job: int) -> dict[str, Any]:
        """Hold a waiting job back, or let a running training save itself and stop."""
        return brief(service.store.pause(number_of(job)))

    def job_retry(job: int) -> dict[str, Any]:
        """Let a paused job go on, or retry one that ended without result."""
        return brief(service.again(number_of(job)))

    def concepts_list() -> list[dict[str, Any]]:
        """The concepts of the library."""
        return [
            {"name": one.name, "phrase": one.phrase, "class_word": one.class_word, "base": one.base,
             "method": one.method, "tags": list(one.tags)}
            for one in service.library.concepts()
        ]  # fmt: skip

    offered: tuple[Callable[..., Any], ...] = (
        train_start, compose, stylize, evaluate, jobs_list, job_show, job_cancel, job_pause, job_retry, concepts_list,
    )  # fmt: skip
    for function in offered:
        _offer(frame, function)


def _offer(frame: Frame, function: Callable[..., Any]) -> None:
    """One endpoint; its refusals are plain text, in which no place on the disk is told."""

    @functools.wraps(function)
    def plain(*given: Any, **named: Any) -> Any:
        try:
            return function(*given, **named)
        except StudioError as error:
            raise gr.Error(frame.service.without_places(str(error)), print_exception=False) from None

    gr.api(frame.speaking(plain), api_name=function.__name__, queue=False)


def _states(given: Any) -> Sequence[str]:
    if given and given not in STATES:
        raise UsageError(f"There is no state {given!r:.60}.", f"Use one of: {', '.join(STATES)}.")
    return (given,) if given else STATES


def number_of(given: Any) -> int:
    """A job's number as a program gives it; raises UsageError for what is none."""
    number = chosen_number(str(given))
    if number is None:
        raise UsageError(f"{given!r:.60} is no number of a job.", "Give a whole number, as /jobs_list has them.")
    return number


def brief(job: Job) -> dict[str, Any]:
    """A job in a list."""
    return {
        "id": job.id, "kind": job.kind, "title": job.title, "state": job.state, "phase": job.phase, "step": job.step,
        "total": job.total, "seconds_left": job.seconds_left, "created": job.created,
    }  # fmt: skip


def told(service: Service, job: Job) -> dict[str, Any]:
    """A job as a program may know it: no path of this machine is in it."""
    result = {key: value for key, value in job.result.items() if key not in ("pictures", "sheet", "folder", "report")}
    pictures = [
        {key: value for key, value in one.items() if key != "path"}
        | ({"url": f"/studio/pictures/{job.id}/{n}"} if "path" in one else {})
        for n, one in enumerate(job.result.get("pictures", []))
    ]
    asked = {key: value for key, value in job.arguments.items() if key not in ("recipe", *TERMINAL_ONLY)}
    return brief(job) | {
        "arguments": asked, "result": result | ({"pictures": pictures} if pictures else {}),
        "problem": service.without_places(job.problem),
        "remedy": service.without_places(job.remedy), "started": job.started, "ended": job.ended, "loss": job.loss,
    }  # fmt: skip
