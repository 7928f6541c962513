"""`studio jobs`: what was asked for in pages and terminals, and how far it is."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from studio.errors import StudioError, UsageError
from studio.home import Home
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.untrusted import shown

if TYPE_CHECKING:
    from studio.jobs import Job, JobStore

app = typer.Typer(no_args_is_help=True, help="List, show, watch, cancel, pause, retry, clone, move and forget jobs.")
NumberArgument = Annotated[int, typer.Argument(help="The job's number.", show_default=False)]
_LOOK_SECONDS = 0.2


def _store(home: Any) -> "JobStore":
    """The jobs, after those that died were found out and those that wait were given a runner."""
    from studio.ui.service import Service

    service = Service(Home.resolve(home))
    service.wake()
    return service.store


@app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the jobs: running, waiting in order, then those that ended, latest first."""
    from studio.job_records import STATES

    if state is not None and state not in STATES:
        raise UsageError(f"There is no state {state!r}.", f"Use one of: {', '.join(STATES)}.")
    jobs = _store(home).jobs((state,) if state else STATES, limit)
    if as_json:
        print_json({"jobs": [record(job) for job in jobs]})
        return
    if not jobs:
        typer.echo("There is no job. studio train-concept, compose and the others make some, as do the pages.")
        return
    from studio.ui.fragments import facts

    table = Table("job", "state", "what", "how far, or how long", box=None)
    for job in jobs:
        table.add_row(str(job.id), job.state, Text(shown(job.title, 80)), Text(facts(job)))
    Console(soft_wrap=True).print(table)


@app.command("show")
def show(number: NumberArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show one job: what was asked, how it went, what it made."""
    store = _store(home)
    told = record(store.job(number))
    if as_json:
        print_json(told)
        return
    log = store.log_file(number)
    for key, value in (told | {"log": log if log.is_file() else None}).items():
        if value not in (None, "", {}, []):
            typer.echo(f"{key.replace('_', ' '):>12}  {shown(str(value), limit=2000)}")


@app.command("watch")
def watch(number: NumberArgument, home: HomeOption = None) -> None:
    """Follow a job until it ends; Ctrl-C leaves it running. Exit code 1 where it ends without its result."""
    from studio.event_records import event_of
    from studio.events import Step
    from studio.ui.progress import progress

    store, last = _store(home), 0
    with progress() as emit:
        while True:
            job = store.job(number)
            for event, _, data in store.events(number, last):
                emit(event_of(data))
                last = event
            if job.total and job.step:
                emit(Step(job.step, job.total, job.seconds_left))
            if job.state not in ("waiting", "running"):
                break
            time.sleep(_LOOK_SECONDS)
    typer.echo(f"Job {number} is {job.state}.")
    if job.problem:
        raise StudioError(job.problem, job.remedy)
    if job.state not in ("done", "paused"):
        raise typer.Exit(1)


def _act(name: str, says: str) -> None:
    """The command `name`, which does what the store's method of that name does."""

    def act(number: NumberArgument, home: HomeOption = None) -> None:
        from studio.ui.service import Service

        service = Service(Home.resolve(home))
        service.wake()
        does = {"retry": service.again, "resume": service.again, "clone": service.clone}
        job = does.get(name, getattr(service.store, name, None))(number)  # pyright: ignore
        wished = f", and is asked to {job.wish}" if job.wish else ""
        typer.echo(f"Job {job.id} is {job.state}{wished}.")

    act.__doc__ = says
    app.command(name)(act)


_act("cancel", "Stop a job within a step, or take it out of the queue.")
_act("pause", "Hold a waiting job back, or let a running training save itself and stop.")
_act("resume", "Let a paused job go on.")
_act("retry", "Do a job again that ended without its result; a training goes on from its last checkpoint.")
_act("clone", "Do the same as a job did once more, as a new job.")


@app.command("move")
def move(
    number: NumberArgument,
    by: Annotated[int, typer.Argument(help="So many places later; negative: earlier.", show_default=False)],
    home: HomeOption = None,
) -> None:
    """Change the place of a waiting job in the queue."""
    typer.echo(f"Job {_store(home).move(number, by).id} has moved.")


@app.command("forget")
def forget(number: NumberArgument, home: HomeOption = None) -> None:
    """Take a job that has ended off the list, with its log; what it made stays."""
    _store(home).forget(number)
    typer.echo(f"Job {number} is forgotten.")


def record(job: "Job") -> dict[str, Any]:
    """A job as programs read it."""
    names = ("id", "kind", "title", "state", "phase", "step", "total", "seconds_left", "loss", "device", "attempts",
             "parent", "problem", "remedy", "arguments", "result")  # fmt: skip
    times = {
        name: None if (when := getattr(job, name)) is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(when))
        for name in ("created", "started", "ended")
    }
    return {name: getattr(job, name) for name in names} | times
