"""The queue of one device: `python -m studio.job_runner HOME DEVICE [READY]`, one at most, started when needed.

It gives waiting jobs to a worker, one after the other. Jobs that may share a process get the same worker for as long as
it is warm; any other gets a fresh one. With READY, work by import string, a worker does that before there is a job. If
the runner dies, its worker ends after the job at hand, and the next runner goes on with the queue.
"""

import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from studio.home import Home
from studio.job_records import BEST
from studio.jobs import Job, JobStore
from studio.process_identity import Identity

LOOK_SECONDS = 0.04  # between two looks at the queue
GRACE_SECONDS = 8.0  # for a cancelled job to end by itself
LINGER_SECONDS = 600.0  # without anything to do
_LOG_TAIL = 400


def ensure_runner(home: Home, device: str = BEST, ready: str | None = None) -> None:
    """Start the runner of `device` if there is none; returns at once. With `ready`, work by import string, a worker
    does that at once, so that the first job need not wait for it."""
    lock = _lock(home, device)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return
    lock.release()
    folder = home.root / "jobs"
    with (folder / f"runner-{_plain(device)}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "studio.job_runner", str(home.root), device, *([ready] if ready else [])],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True,
        )  # fmt: skip
    threading.Thread(target=process.wait, daemon=True).start()  # lest it stays a zombie of ours


def _lock(home: Home, device: str) -> FileLock:
    (home.root / "jobs").mkdir(parents=True, exist_ok=True)
    return FileLock(home.root / "jobs" / f"runner-{_plain(device)}.lock")


def _plain(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower())


@dataclass
class _Worker:
    """A process that does jobs; `fresh` until it got its first."""

    process: "subprocess.Popen[str]"
    identity: Identity
    fresh: bool = True

    @classmethod
    def begin(cls, home: Home, ready: str | None = None) -> "_Worker":
        log = (home.root / "jobs" / "worker.log").open("ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "studio.job_worker", str(home.root), *([ready] if ready else [])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=home.root,
            )  # fmt: skip
        return cls(process, Identity.of(process.pid))

    def close(self) -> None:
        """Let it end, now that it has nothing to do."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.identity.kill()
            self.process.wait()

    def ending(self) -> str:
        """How a process that is gone ended, in words."""
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
            return f"Its process was ended by {name}{hint}"
        return f"Its process ended with code {code}"


class Runner:
    """What the process does: one step after the other, `turn` by `turn`."""

    def __init__(self, home: Home, device: str, ready: str | None = None) -> None:
        self.store, self.device = JobStore(home), device
        self.worker = None if ready is None else _Worker.begin(home, ready)
        self.current: int | None = None
        self.busy = time.monotonic()

    def run(self) -> None:
        """Serve the queue until there was nothing to do for a while."""
        self.store.reconcile()
        while time.monotonic() - self.busy < LINGER_SECONDS:
            self.turn()
        if self.worker is not None:
            self.worker.close()

    def turn(self) -> None:
        """Look after the job at hand, or take up the next."""
        if self.current is not None:
            self.busy = time.monotonic()
            self.watch(self.store.job(self.current))
            return
        if self.worker is not None and self.worker.process.poll() is not None:
            self.worker = None
        job = self.store.next_waiting(self.device)
        if job is None or self.left_behind():
            time.sleep(LOOK_SECONDS)
            return
        self.give(job)

    def left_behind(self) -> bool:
        """Whether a worker of a runner that died is still at work here."""
        running = [one for one in self.store.jobs(("running",)) if one.device == self.device and not one.terminal]
        for one in running:
            if one.identity is None or not one.identity.alive():
                self.store.settle(one)
            elif _overdue(one):
                one.identity.kill()
        return bool(running)

    def give(self, job: Job) -> None:
        """Let a worker begin with `job`."""
        if self.worker is not None and not (job.warm or self.worker.fresh):
            self.worker.close()
            self.worker = None
        worker = self.worker or _Worker.begin(self.store.home)
        self.worker = worker
        if not self.store.start(job.id, worker.identity):
            return
        self.current, worker.fresh = job.id, False
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(f"{job.id}\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            self.lost(self.store.job(job.id))

    def watch(self, job: Job) -> None:
        """Wait a little for the worker's answer; notice if it died, or does not heed."""
        worker = self.worker
        assert worker is not None
        assert worker.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(worker.process.stdout, selectors.EVENT_READ)
            ready = selector.select(LOOK_SECONDS)
        if ready:
            if worker.process.stdout.readline():
                self.finished(self.store.job(job.id))
            else:
                self.lost(job)
        elif _overdue(job):
            worker.identity.kill()

    def finished(self, job: Job) -> None:
        """The worker is free again, or is let go where the next job needs a fresh one."""
        if job.state == "running":  # the disk may be full; else the queue would wait for a worker that is idle
            self.store.settle(job, "Its end could not be written down")
        self.current = None
        if not job.warm and self.worker is not None:
            self.worker.close()
            self.worker = None

    def lost(self, job: Job) -> None:
        """The worker died."""
        assert self.worker is not None
        why, self.worker, self.current = self.worker.ending(), None, None
        said = self.store.log_file(job.id)
        tail = said.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:].strip() if said.is_file() else ""
        self.store.settle(job, f"{why}. It last said: {tail.splitlines()[-1]}" if tail else why)


def _overdue(job: Job) -> bool:
    return job.wish == "cancel" and job.wished is not None and time.time() - job.wished > GRACE_SECONDS


def main(home: str, device: str, ready: str | None = None) -> int:
    """Be the runner of `device`, unless there is one."""
    for kind in (signal.SIGINT, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)
    place, lock = Home(Path(home)), _lock(Home(Path(home)), device)
    store = JobStore(place)
    while True:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return 0
        Runner(place, device, ready).run()
        ready = None
        lock.release()
        if store.next_waiting(device) is None:  # one may have come between the last look and the release
            return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(*sys.argv[1:]))
