"""Doing a job: its events go to the store, its end becomes its state, and the user's wishes reach it between steps."""

import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from studio.errors import Cancelled, StudioError, named
from studio.events import Emit, Event, Phase, Step
from studio.home import Home
from studio.job_records import BEST
from studio.jobs import Job, JobStore

STEP_SECONDS = 0.1  # between two steps that are written down
WISH_SECONDS = 0.05  # between two looks at what the user wants
BEAT_SECONDS = 5.0
LEASE_SECONDS = 1.0  # between two tries to have the device
STOPPED = 130  # the exit code of those who were told to stop
_CAUSE_LIMIT = 8000


class Reporter:
    """An `emit` for the job `number`; `result` is what the job made, to be set before it ends.

    Raises Cancelled where the user cancelled. A wish to pause comes as Ctrl-C, once.
    """

    def __init__(self, store: JobStore, number: int) -> None:
        self.store, self.number = store, number
        self.result: dict[str, Any] = {}
        self._noted = self._asked = 0.0
        self._held: Event | None = None
        self._told = False

    def __call__(self, event: Event) -> None:
        """Write `event` down, and look what the user wants."""
        now = time.monotonic()
        between = isinstance(event, Step) and 1 < event.step < event.total and now - self._noted < STEP_SECONDS
        self._held = event if between else None
        if not between:
            self._noted = now
            self.store.note(self.number, event)
        if now - self._asked >= WISH_SECONDS:
            self._asked = now
            self.heed()

    def flush(self) -> None:
        """Write down the step that followed another too soon."""
        if self._held is not None:
            self.store.note(self.number, self._held)

    def heed(self) -> None:
        """Do what the user wants of the running job."""
        wish = self.store.wish(self.number)
        if wish == "cancel":
            raise Cancelled("Cancelled.")
        if wish == "pause" and not self._told:
            self._told = True
            signal.raise_signal(signal.SIGINT)


@contextmanager
def working(store: JobStore, job: Job) -> Iterator[Reporter]:
    """Within, `job` is being done by this process; it ends in the state that the block's end gives it.

    Errors go on to the caller. One who was told to stop has paused where the job can, else it is cancelled.
    """
    reporter = Reporter(store, job.id)
    ended = threading.Event()
    threading.Thread(target=_beat, args=(store, job.id, ended), daemon=True).start()
    try:
        try:
            yield reporter
        finally:
            reporter.flush()
    except Cancelled:
        store.end(job.id, "cancelled")
        raise
    except KeyboardInterrupt:
        store.end(job.id, "paused" if job.pausable and store.wish(job.id) == "pause" else "cancelled")
        raise
    except StudioError as error:
        stopped = error.exit_code == STOPPED and job.pausable
        state = "failed" if not stopped else "cancelled" if store.wish(job.id) == "cancel" else "paused"
        store.end(job.id, state, problem=error.problem, remedy=error.remedy)
        raise
    except BaseException as error:
        cause = traceback.format_exc()[-_CAUSE_LIMIT:]
        store.end(job.id, "failed", problem=named(error), remedy="Its log has more.", cause=cause)
        raise
    else:
        store.end(job.id, "done", reporter.result)
        store.settle_paused(job.id)
    finally:
        ended.set()


def _beat(store: JobStore, number: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        store.beat(number)


@contextmanager
def leased(home: Home, device: str, emit: Emit) -> Iterator[None]:
    """Within, this process has an accelerator for itself; a CPU is shared. Waits for whoever has it."""
    from studio.devices import pick_device

    place = pick_device(None if device == BEST else device)
    if place.type == "cpu":
        yield
        return
    lock = FileLock(home.root / "jobs" / f"lease-{place.type}-{place.index or 0}.lock")
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        try:
            lock.acquire(timeout=LEASE_SECONDS)
            break
        except Timeout:
            # Each is an occasion to be cancelled; only the first is written down.
            emit(Step(0, 1) if told else Phase(f"Wait for {place}, which another job has"))
            told = True
    try:
        yield
    finally:
        lock.release()
