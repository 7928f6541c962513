"""Work for the tests of jobs, named by import string as "job_works:NAME"."""

import os
import signal
import sqlite3
import time

from studio.errors import StudioError, UsageError
from studio.events import Notice, Phase, Step
from studio.jobs import JobStore


def add(arguments, bench):
    bench.emit(Phase("Adding", 2))
    bench.emit(Step(1, 2))
    bench.emit(Notice("half way"))
    bench.emit(Step(2, 2))
    kept = bench.kept.setdefault("calls", [])
    kept.append(bench.number)
    return {"sum": arguments["a"] + arguments["b"], "calls": len(kept), "pid": os.getpid()}


def prepare(arguments, bench):
    print("not an answer")
    bench.kept["calls"] = ["ready"]
    return {}


def fail_to_prepare(arguments, bench):
    raise OSError("no such thing")


def count(arguments, bench):
    """Steps of `seconds` each, `steps` of them."""
    steps = arguments["steps"]
    bench.emit(Phase("Counting", steps))
    for n in range(steps):
        time.sleep(arguments["seconds"])
        bench.emit(Step(n + 1, steps))
    return {"counted": steps}


def deaf(arguments, bench):
    bench.emit(Phase("Sleeping"))
    time.sleep(60)


def refuse(arguments, bench):
    raise UsageError("This cannot be.", "Do that.")


def crash(arguments, bench):
    print("about to divide")
    return {"never": 1 / 0}


def die(arguments, bench):
    print("so long", flush=True)
    if bench.attempt <= arguments.get("times", 100):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"attempt": bench.attempt}


def unwritten(arguments, bench):
    """Its end fails to be written down, as on a full disk, `times` times."""
    end = JobStore.end

    def fail(*given, **named):
        JobStore.end = end
        raise sqlite3.OperationalError("database or disk is full")

    if bench.attempt <= arguments.get("times", 100):
        JobStore.end = fail
    return {"attempt": bench.attempt}


class _Stopped(StudioError):
    exit_code = 130


def saving(arguments, bench):
    """Counts on from where it was when it was told to pause."""
    file = bench.home.root / "count.txt"
    first = int(file.read_text()) if file.is_file() else 0
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(1))
    for n in range(first, arguments["steps"]):
        time.sleep(0.02)
        bench.emit(Step(n + 1, arguments["steps"]))
        file.write_text(str(n + 1))
        if asked:
            raise _Stopped("Stopped; it is saved.")
    return {"began_at": first}
