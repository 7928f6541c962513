"""The process that does jobs: `python -m studio.job_worker HOME [READY]`, started and spoken to by the runner.

It does READY, work by import string, which leaves behind what jobs are likely to need. Then it reads a job's number a
line, does it, and answers with that number. What it keeps between jobs (a loaded base) stays warm. It ends when the
runner is gone, after the job at hand.
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.events import Emit, silent
from studio.home import Home
from studio.job_records import BEST
from studio.job_work import leased, working
from studio.jobs import Job, JobStore


@dataclass
class Bench:
    """What work is given besides its arguments: the home, a listener, and `kept`, which lasts from job to job."""

    home: Home
    emit: Emit
    device: str | None
    number: int
    attempt: int
    kept: dict[str, Any] = field(default_factory=dict)


Work = Callable[[dict[str, Any], Bench], dict[str, Any]]


def find_work(place: str) -> Work:
    """The function "module:name"; raises ImportError or AttributeError."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def do(store: JobStore, job: Job, kept: dict[str, Any]) -> None:
    """Do `job`, whatever comes of it: its row says how it ended, its log why."""
    try:
        with working(store, job) as reporter:
            device = None if job.device == BEST else job.device
            bench = Bench(store.home, reporter, device, job.id, job.attempts, kept)
            with leased(store.home, job.device, reporter):
                reporter.result = find_work(job.work)(job.arguments, bench)
    except StudioError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    except Exception:
        traceback.print_exc()


def get_ready(store: JobStore, ready: str, kept: dict[str, Any]) -> None:
    """Do `ready`; a failure is told by the first job that meets it."""
    try:
        find_work(ready)({}, Bench(store.home, silent, None, 0, 0, kept))
    except Exception:
        traceback.print_exc()


def main(home: str, ready: str | None = None) -> int:
    """Serve the runner at the other end of stdin and stdout until it is gone."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # lest what libraries print is taken for an answer
    store, kept = JobStore(Home(Path(home))), {}
    if ready is not None:
        get_ready(store, ready, kept)
    while line := sys.stdin.readline():
        number = int(line)
        _log_to(store.log_file(number))
        do(store, store.job(number), kept)
        try:
            print(number, file=answers, flush=True)
        except BrokenPipeError:
            return 0
    return 0


def _log_to(file: Path) -> None:
    """Let all that this process and its libraries print from now on go to `file`."""
    sys.stdout.flush()
    sys.stderr.flush()
    file.parent.mkdir(parents=True, exist_ok=True)
    to = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(to, stream)
    os.close(to)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
