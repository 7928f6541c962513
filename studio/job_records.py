"""A job as it is written down: its row, its order, and the file that holds both."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from studio.errors import UsageError
from studio.home import ensure_writable
from studio.process_identity import Identity

State = Literal["waiting", "running", "paused", "done", "failed", "cancelled", "interrupted"]
Wish = Literal["", "cancel", "pause"]
STATES: tuple[State, ...] = get_args(State)
ENDED = ("done", "failed", "cancelled", "interrupted")
BEST = "best"  # the device, where none is asked for

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, title TEXT NOT NULL, work TEXT NOT NULL,
    arguments TEXT NOT NULL, device TEXT NOT NULL, terminal INTEGER NOT NULL DEFAULT 0, warm INTEGER NOT NULL,
    pausable INTEGER NOT NULL, state TEXT NOT NULL, wish TEXT NOT NULL DEFAULT '', wished REAL, position REAL,
    attempts INTEGER NOT NULL DEFAULT 0, parent INTEGER, created REAL NOT NULL, started REAL, ended REAL,
    pid INTEGER, born REAL, boot TEXT, heartbeat REAL, phase TEXT NOT NULL DEFAULT '', step INTEGER, total INTEGER,
    seconds_left REAL, loss REAL, result TEXT, problem TEXT NOT NULL DEFAULT '', remedy TEXT NOT NULL DEFAULT '',
    cause TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE, at REAL NOT NULL,
    kind TEXT NOT NULL, data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_job ON events (job, id);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, device, position);
"""
_VERSION = 1


@dataclass(frozen=True)
class Job:
    """A row: what is to be done, how far it is, and how it ended.

    `work` is "module:function", called with `arguments`. `warm` work may share a process with what ran before, and is
    done again if that process dies; `pausable` work saves itself when it is told to pause. `cause` is the traceback of
    a failure, `position` the place in the queue. Times are seconds since 1970.
    """

    id: int
    kind: str
    title: str
    work: str
    arguments: dict[str, Any]
    device: str
    terminal: bool
    warm: bool
    pausable: bool
    state: State
    wish: Wish
    wished: float | None
    position: float
    attempts: int
    parent: int | None
    created: float
    started: float | None
    ended: float | None
    pid: int | None
    born: float | None
    boot: str | None
    heartbeat: float | None
    phase: str
    step: int | None
    total: int | None
    seconds_left: float | None
    loss: float | None
    result: dict[str, Any]
    problem: str
    remedy: str
    cause: str

    @property
    def identity(self) -> Identity | None:
        """The process that works on it, or did."""
        if self.pid is None or self.born is None or self.boot is None:
            return None
        return Identity(self.pid, self.born, self.boot)

    @property
    def final(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ENDED


@dataclass(frozen=True)
class Order:
    """What is asked for: the part of a job that is known before it begins."""

    kind: str
    title: str
    work: str
    arguments: dict[str, Any]
    device: str = BEST
    warm: bool = False
    pausable: bool = False


def open_jobs(file: Path) -> sqlite3.Connection:
    """A connection to the jobs in `file`, made if missing.

    Raises UsageError for a newer studio's, StudioError where the folder cannot be written.
    """
    ensure_writable(file.parent)
    db = sqlite3.connect(file, timeout=30, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA busy_timeout = 30000")
    db.execute("PRAGMA journal_mode = WAL")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _VERSION:
        raise UsageError(
            f"{file} was written by a newer studio (schema {version}; this one knows {_VERSION}).",
            "Update concept-studio, or choose another state folder with --home.",
        )
    if version < _VERSION:
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    return db


def set_job(db: sqlite3.Connection, job: int, states: Sequence[str], values: dict[str, Any]) -> bool:
    """Write `values` where the job is in one of `states`; says whether it was."""
    settings = ", ".join(f"{name} = ?" for name in values)
    marks = ", ".join("?" * len(states))
    sql = f"UPDATE jobs SET {settings} WHERE id = ? AND state IN ({marks})"
    return db.execute(sql, (*values.values(), job, *states)).rowcount > 0


def read_job(row: sqlite3.Row) -> Job:
    """The job of a row."""
    values = {name: row[name] for name in row.keys()}
    values |= {"arguments": json.loads(row["arguments"]), "result": json.loads(row["result"] or "{}")}
    values |= {name: bool(row[name]) for name in ("terminal", "warm", "pausable")}
    return Job(**values)
