"""Jobs: durable units of work, a row each in the home's `jobs.sqlite`, with a stream of events beside it.

A job is named by an import string, so that nothing above this layer is needed to keep it. Who works on one (a worker
of the runner, or a terminal) is known by process id, start time and boot.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from studio.errors import UsageError
from studio.event_records import record
from studio.events import Event, Loss, Phase, Step
from studio.home import Home
from studio.job_records import STATES, Job, Order, State, Wish, open_jobs, read_job, set_job
from studio.process_identity import Identity

__all__ = ["Job", "JobStore", "Order"]

ATTEMPTS = 3  # of work that ends with its process, where it may simply be done again
_RETRIED = ("failed", "cancelled", "interrupted")


class JobStore:
    """The jobs of a home; may be used from several processes and threads at once."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.file = home.root / "jobs.sqlite"
        self._local = threading.local()

    def log_file(self, job: int) -> Path:
        """What the job's process printed."""
        return self.home.root / "jobs" / f"{job}.log"

    def submit(self, order: Order, parent: int | None = None) -> Job:
        """Put `order` at the end of the queue."""
        return self._insert(order, "waiting", None, parent)

    def begin_here(self, order: Order, who: Identity) -> Job:
        """Write down work that the terminal `who` does itself, and that no runner takes."""
        return self._insert(order, "waiting", who, None)

    def job(self, number: int) -> Job:
        """The job of that number; raises UsageError where there is none."""
        row = self._db.execute("SELECT * FROM jobs WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise UsageError(f"There is no job {number}.", "studio jobs list shows those that there are.")
        return read_job(row)

    def jobs(self, states: Sequence[str] = STATES, limit: int = 1000) -> list[Job]:
        """Those in `states`: running ones first, then waiting ones in order, then the others, latest first."""
        marks = ",".join("?" * len(states))
        rows = self._db.execute(
            f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY"
            " CASE state WHEN 'running' THEN 0 WHEN 'waiting' THEN 1 WHEN 'paused' THEN 2 ELSE 3 END,"
            " CASE WHEN state IN ('running', 'waiting', 'paused') THEN position ELSE -COALESCE(ended, created) END, id"
            " LIMIT ?",
            (*states, limit),
        )
        return [read_job(row) for row in rows]

    def events(self, job: int, after: int = 0, kinds: Sequence[str] = ()) -> list[tuple[int, float, dict[str, Any]]]:
        """(number, time, record) of what happened after event `after`, of all kinds or of `kinds`."""
        marks = f"AND kind IN ({','.join('?' * len(kinds))})" if kinds else ""
        rows = self._db.execute(
            f"SELECT id, at, data FROM events WHERE job = ? AND id > ? {marks} ORDER BY id", (job, after, *kinds)
        )
        return [(row["id"], row["at"], json.loads(row["data"])) for row in rows]

    def next_waiting(self, device: str) -> Job | None:
        """The first in the queue of a device's runner."""
        row = self._db.execute(
            "SELECT * FROM jobs WHERE state = 'waiting' AND device = ? AND NOT terminal ORDER BY position, id LIMIT 1",
            (device,),
        ).fetchone()
        return None if row is None else read_job(row)

    def start(self, job: int, who: Identity) -> bool:
        """`who` begins to work on a waiting job; False where it is no longer waiting."""
        now = time.time()
        return self._update(
            job, ("waiting",), state="running", pid=who.pid, born=who.born, boot=who.boot, started=now, heartbeat=now,
            ended=None, phase="", step=None, total=None, seconds_left=None, problem="", remedy="", cause="",
            attempts=self.job(job).attempts + 1,
        )  # fmt: skip

    def note(self, job: int, event: Event) -> None:
        """Write down what happened, and how far the job is by it."""
        kind, data = record(event)
        moved: dict[str, Any] = {"heartbeat": time.time()}
        match event:
            case Phase(name, total):
                moved |= {"phase": name, "step": 0 if total else None, "total": total, "seconds_left": None}
            case Step(step, total, seconds_left):
                moved |= {"step": step, "total": total, "seconds_left": seconds_left}
            case Loss(_, loss, _):
                moved |= {"loss": loss}
        with self._write() as db:
            if not isinstance(event, Step):  # of which only the last is of use
                db.execute(
                    "INSERT INTO events (job, at, kind, data) VALUES (?, ?, ?, ?)", (job, time.time(), kind, data)
                )
            set_job(db, job, ("running",), moved)

    def beat(self, job: int) -> None:
        """Say that the process is alive."""
        self._update(job, ("running",), heartbeat=time.time())

    def wish(self, job: int) -> Wish:
        """What the user wants of a running job."""
        row = self._db.execute("SELECT wish FROM jobs WHERE id = ?", (job,)).fetchone()
        return row["wish"] if row else "cancel"

    def end(self, job: int, state: State, result: dict[str, Any] | None = None, **why: str) -> bool:
        """A running job ends in `state`, `why` being its problem, remedy and cause."""
        found = {} if result is None else {"result": json.dumps(result, default=str)}
        return self._update(job, ("running",), durable=True, state=state, ended=time.time(), wish="", **found, **why)

    def again(self, job: int) -> bool:
        """A running job whose process died goes back to its place in the queue."""
        return self._update(job, ("running",), durable=True, state="waiting", pid=None, phase="", step=None)

    def cancel(self, number: int) -> Job:
        """Stop a job, or take it out of the queue; one that has ended stays as it is."""
        self.job(number)
        now = time.time()
        self._update(number, ("waiting", "paused"), durable=True, state="cancelled", ended=now)
        self._update(number, ("running",), durable=True, wish="cancel", wished=now)
        return self.job(number)

    def pause(self, number: int) -> Job:
        """Hold a waiting job back, or let a running one save itself and stop, unless it is being cancelled.

        Raises UsageError where it cannot be paused.
        """
        job = self.job(number)
        if job.state == "running" and not job.pausable:
            raise UsageError(f"Job {number} cannot be paused while it runs: it saves nothing on the way.", "Cancel it.")
        self._update(number, ("waiting",), durable=True, state="paused")
        with self._write(durable=True) as db:
            asked = "UPDATE jobs SET wish = 'pause', wished = ? WHERE id = ? AND state = 'running' AND wish != 'cancel'"
            db.execute(asked, (time.time(), number))
        return self.job(number)

    def resume(self, number: int) -> Job:
        """Let a paused job go on: it waits for its turn again."""
        job = self.job(number)
        if job.state != "paused":
            raise UsageError(f"Job {number} is {job.state}, not paused.", "Only a paused job can go on.")
        self._update(number, ("paused",), durable=True, state="waiting", terminal=0)
        return self.job(number)

    def retry(self, number: int) -> Job:
        """Put a job that ended without its result into the queue once more, as it is; raises UsageError for others."""
        job = self.job(number)
        if job.state not in _RETRIED:
            raise UsageError(
                f"Job {number} is {job.state}, so there is nothing to retry.", "Clone it to do the same again."
            )
        self._update(
            number, _RETRIED, durable=True, state="waiting", terminal=0, attempts=0, ended=None, pid=None, wish="",
            position=self._last() + 1,
        )  # fmt: skip
        return self.job(number)

    def clone(self, number: int) -> Job:
        """A new job that does the same."""
        job = self.job(number)
        order = Order(job.kind, job.title, job.work, job.arguments, job.device, job.warm, job.pausable)
        return self.submit(order, parent=number)

    def move(self, number: int, by: int) -> Job:
        """Let a waiting job go `by` places later (negative: earlier)."""
        queue = self.jobs(("waiting",))
        names = [one.id for one in queue]
        if number not in names:
            raise UsageError(f"Job {number} is {self.job(number).state}, not waiting.", "Only the queue has an order.")
        others = [one for one in queue if one.id != number]
        to = min(max(names.index(number) + by, 0), len(others))
        before = others[to - 1].position if to else (others[0].position - 2 if others else 0.0)
        after = others[to].position if to < len(others) else before + 2
        self._update(number, ("waiting",), durable=True, position=(before + after) / 2)
        return self.job(number)

    def forget(self, number: int) -> None:
        """Take a job that has ended off the list, with its log; what it made stays."""
        job = self.job(number)
        if not job.final:
            raise UsageError(f"Job {number} is {job.state}.", "Cancel it first.")
        with self._write(durable=True) as db:
            db.execute("DELETE FROM events WHERE job = ?", (number,))
            db.execute("DELETE FROM jobs WHERE id = ?", (number,))
        self.log_file(number).unlink(missing_ok=True)

    def reconcile(self) -> list[Job]:
        """Find jobs whose process is gone, and say so; returns them as they are now.

        Work that may simply be done again waits once more, up to ATTEMPTS times; other work is interrupted.
        """
        owned = [one for one in self.jobs(("running", "waiting")) if one.state == "running" or one.terminal]
        gone = [one for one in owned if one.identity is None or not one.identity.alive()]
        for one in gone:
            self.settle(one)
        return [self.job(one.id) for one in gone]

    def settle(self, job: Job, why: str = "Its process ended without a word") -> None:
        """Give a job that nobody works on any more the state that it deserves; `why` that is."""
        ended = {"ended": job.heartbeat or time.time(), "wish": ""}  # when it was last heard of
        if job.wish == "cancel":
            self._update(job.id, ("running", "waiting"), durable=True, state="cancelled", **ended)
        elif job.warm and not job.terminal and job.attempts < ATTEMPTS:
            self.again(job.id)
        else:
            remedy = "Retry goes on from its last checkpoint." if job.pausable else "Retry does it again."
            told = {"state": "interrupted", "problem": f"{why}.", "remedy": remedy}
            self._update(job.id, ("running", "waiting"), durable=True, **ended, **told)

    def settle_paused(self, by: int) -> None:
        """Cancel the paused trainings of the name that job `by` has trained to the end: they have nothing to go on."""
        name = "json_extract(arguments, '$.recipe.name')"
        told = ("cancelled", time.time(), f"Job {by} finished this training.", by)
        with self._write(durable=True) as db:
            db.execute(
                "UPDATE jobs SET state = ?, ended = COALESCE(ended, ?), problem = ?, remedy = ''"
                f" WHERE state = 'paused' AND started IS NOT NULL AND {name} = (SELECT {name} FROM jobs WHERE id = ?)",
                told,
            )

    def _insert(self, order: Order, state: State, who: Identity | None, parent: int | None) -> Job:
        values: dict[str, Any] = {one.name: getattr(order, one.name) for one in fields(order)}
        values |= {"arguments": json.dumps(order.arguments, default=str), "state": state, "created": time.time()}
        values |= {"parent": parent, "terminal": who is not None}
        if who is not None:
            values |= {"pid": who.pid, "born": who.born, "boot": who.boot, "heartbeat": time.time()}
        with self._write(durable=True) as db:
            values["position"] = self._last() + 1
            names, marks = ", ".join(values), ", ".join("?" * len(values))
            cursor = db.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", tuple(values.values()))
            number = cursor.lastrowid
        assert number is not None
        return self.job(number)

    def _last(self) -> float:
        return self._db.execute("SELECT COALESCE(MAX(position), 0) FROM jobs").fetchone()[0]

    def _update(self, job: int, states: Sequence[str], *, durable: bool = False, **values: Any) -> bool:
        with self._write(durable) as db:
            return set_job(db, job, states, values)

    @contextmanager
    def _write(self, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction; a `durable` one is on the disk at its end, others survive the process but not the power."""
        db = self._db
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    @property
    def _db(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self._local, "db"):
            self._local.db = open_jobs(self.file)
        return self._local.db
