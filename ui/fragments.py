"""What pages show of jobs: pieces of HTML, in which every text is escaped."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from studio.errors import UsageError
from studio.jobs import Job
from studio.ui.charts import chart_of
from studio.ui.progress import duration
from studio.ui.report import template_of
from studio.ui.service import Service
from studio.ui.thumbs import Thumbs

LOOKS = {  # of the states, as the style sheet names them
    "waiting": "waiting", "running": "running", "paused": "paused", "done": "done", "failed": "failed",
    "cancelled": "cancelled", "interrupted": "lost",
}  # fmt: skip
_LOG_LIMIT = 20_000
_MOST_NOTICES = 6
_MOST_JOBS = 100


def strip(service: Service) -> str:
    """The line that says what is running now."""
    running = service.store.jobs(("running",))
    waiting = [one for one in service.store.jobs(("waiting",)) if not one.terminal]
    ended = [] if running else service.store.jobs(("done", "failed", "cancelled", "interrupted"), limit=1)
    return render(
        "strip.html", job=running[0] if running else None, waiting=len(waiting), last=ended[0] if ended else None
    )


def queue(service: Service, chosen: int | None, shown: str = "all") -> str:
    """The list of jobs, `chosen` marked; `shown` is "all", "open" or a kind."""
    jobs = service.store.jobs(limit=_MOST_JOBS)
    if shown == "open":
        jobs = [one for one in jobs if not one.final]
    elif shown != "all":
        jobs = [one for one in jobs if one.kind == shown]
    empty = ("No job yet", "Everything that takes time is listed here, and goes on when you close this page.")
    return job_list(jobs, chosen, "Jobs", {job.id: facts(job) for job in jobs}, empty)


def job_list(
    jobs: Sequence[Job], chosen: int | None, label: str, told: Mapping[int, str], empty: tuple[str, str]
) -> str:
    """Jobs as buttons, `chosen` marked, with what is `told` of each by number; `empty` is said where there is none."""
    return render("queue.html", jobs=jobs, chosen=chosen, label=label, told=told, empty=empty)


def standing(service: Service, job: Job | None, title: str, lead: str) -> Markup:
    """How far a page's own job is, or why it ended without result; `title` and `lead` invite where there is none."""
    notices = [] if job is None else notices_of(service, job)
    return Markup(render("standing.html", job=job, notices=notices, title=title, lead=lead))


def found(service: Service, number: int | None, *kinds: str) -> Job | None:
    """The job of that number, if there is one and it is of one of `kinds`, where they are given."""
    try:
        job = None if number is None else service.store.job(number)
    except UsageError:
        return None
    return job if job is None or not kinds or job.kind in kinds else None


def job_view(service: Service, number: int, smoothing: float = 0.9) -> str:
    """Everything about one job; raises UsageError where there is none."""
    job = service.store.job(number)
    told = [data for _, _, data in service.store.events(number)]
    losses = [(one["step"], one["loss"]) for one in told if one["kind"] == "loss"]
    measured = [one for one in told if one["kind"] == "validation"]
    return render(
        "job.html", job=job, notices=notices_of(service, job),
        chart=chart_of(losses, [(one["step"], one["loss"]) for one in measured], smoothing) if losses else None,
        checkpoints=_checkpoints(measured), previews=_previews(service, job, told), pictures=pictures(service, job),
        arguments=json.dumps(job.arguments, indent=2, ensure_ascii=False), log=_log(service, job),
    )  # fmt: skip


def pictures(service: Service, job: Job) -> Markup | None:
    """What a drawing job made."""
    made = job.result.get("pictures", [])
    if not made:
        return None
    thumbs, prompt = Thumbs(service.home), job.result.get("prompt", job.title)
    shown = [
        {
            "url": thumbs.url(Path(one["path"])),
            "full": f"/studio/pictures/{job.id}/{n}",
            "alt": f"{prompt}, by {one.get('method', job.kind)}, seed {one['seed']}",
            "caption": f"{one.get('method', job.kind)}, seed {one['seed']}",
        }
        for n, one in enumerate(made)
        if "path" in one  # evaluations have pictures of their own kind
    ]
    return None if not shown else Markup(render("pictures.html", pictures=shown))  # rendered with escaping just above


def message(text: str, remedy: str = "", kind: str = "") -> str:
    """A box that says something; `kind` is good, warn or bad."""
    return str(
        Markup('<div class="message {}" role="status">{}<span class="remedy">{}</span></div>').format(
            kind, text, remedy
        )
    )


def facts(job: Job) -> str:
    """How far a job is, in a few words."""
    if job.state == "running":
        parts = [job.phase or "Starting"]
        parts += [f"{job.step or 0} of {job.total}"] if job.total else []
        parts += [f"{duration(job.seconds_left)} left"] if job.seconds_left else []
        parts += [f"loss {job.loss:.3f}"] if job.loss is not None else []
        return " · ".join(parts)
    if job.started is not None and job.ended is not None:
        return duration(job.ended - job.started)
    return "" if job.state != "waiting" else f"since {_clock(job.created)}"


def times(job: Job) -> str:
    """When a job began and how long it took, in words."""
    if job.started is None:
        return f"asked for at {_clock(job.created)}"
    if job.ended is None or job.state == "running":
        return f"began at {_clock(job.started)}"
    return f"began at {_clock(job.started)}, took {duration(job.ended - job.started)}"


def _bar(job: Job) -> Markup:
    return Markup(render("bar.html", job=job))


def _clock(when: float) -> str:
    today = time.strftime("%Y-%m-%d") == time.strftime("%Y-%m-%d", time.localtime(when))
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", time.localtime(when))


def _checkpoints(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a measured step, the best marked: by pictures where they were read, else by the loss."""
    rows = [one for one in measured if one["step"]]
    if not rows:
        return []
    scored = all(one["fidelity"] for one in rows)
    merit: Callable[[Mapping[str, Any]], float] = lambda one: sum(one["fidelity"]) if scored else -one["loss"]  # noqa: E731
    best = max(rows, key=merit)
    return [
        {
            "step": one["step"],
            "loss": f"{one['loss']:.4f}",
            "concept": f"{one['fidelity'][0]:.2f}" if one["fidelity"] else "",
            "prompt": f"{one['fidelity'][1]:.2f}" if one["fidelity"] else "",
            "best": one is best,
        }
        for one in rows
    ]


def _previews(service: Service, job: Job, told: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A row a prompt, a column a step, the base first."""
    made = {one["step"]: one for one in told if one["kind"] == "preview"}
    if not made:
        return None
    steps, thumbs = sorted(made), Thumbs(service.home)
    prompts = made[steps[0]]["prompts"]

    def url(step: int, n: int) -> str:
        paths = made[step]["paths"]
        return thumbs.url(_where_now(service, job, Path(paths[n])), 192) if n < len(paths) else ""

    rows = [{"prompt": prompt, "urls": [url(step, n) for step in steps]} for n, prompt in enumerate(prompts)]
    return {"steps": steps, "rows": rows}


def _where_now(service: Service, job: Job, path: Path) -> Path:
    """Previews move into the library with the concept that they show."""
    name = job.result.get("concept")
    return service.home.library / name / "samples" / path.name if name and not path.is_file() else path


def _log(service: Service, job: Job) -> str:
    file = service.store.log_file(job.id)
    return file.read_text(encoding="utf-8", errors="replace")[-_LOG_LIMIT:] if file.is_file() else ""


def notices_of(service: Service, job: Job) -> list[str]:
    """What the user should know of a job, each sentence once."""
    told = [data["message"] for _, _, data in service.store.events(job.id, kinds=("notice",))]
    return list(dict.fromkeys(told))[-_MOST_NOTICES:]


def render(name: str, **values: Any) -> str:
    """The template `name` with `values`, every text escaped."""
    return _template(name).render(looks=LOOKS, **values)


@cache
def _template(name: str) -> Template:
    return template_of(name, {"facts": facts, "times": times, "bar": _bar}, "web")
