"""A real server of the web studio, in a process of its own, for the tests that speak to one."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

START_SECONDS = 120


@contextmanager
def served(home, **environment):
    """The address of a server of `home`; it, its runner and its workers are gone at the end."""
    process = start(home, **environment)
    try:
        yield wait_for(process)
    finally:
        stop(process, home)


def start(home, **environment):
    """The server's process; its address is among the first lines that it prints."""
    code = "from studio.ui.cli import main; import sys; sys.exit(main())"
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-c", code, "ui", "--no-browser", "--home", str(home)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(process):
    """The address that the server says it is at."""
    until, said = time.monotonic() + START_SECONDS, []
    while time.monotonic() < until:
        line = process.stdout.readline()
        said.append(line)
        if found := re.search(r"http://[^\s]+", line):
            return found[0].rstrip("/")
        if not line and process.poll() is not None:
            break
    raise AssertionError("".join(said))


def stop(process, home):
    """End the server and all that works for `home`."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
    for one in workers_of(home):
        one.kill()


def workers_of(home):
    """Runners and workers that serve `home`."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        words = one.info["cmdline"] or []
        if str(home) in words and any(word.startswith("studio.job_") for word in words):
            found.append(one)
    return found


def settled(client, job, seconds=120):
    """What the API tells of a job that has come to its end."""
    until, told = time.monotonic() + seconds, None
    while time.monotonic() < until:
        told = client.predict(job, api_name="/job_show")
        if told["state"] in ("done", "failed", "cancelled", "interrupted", "paused"):
            return told
        time.sleep(0.1)
    raise AssertionError(told)


def get(address, path, **headers):
    """The answer to a plain request, redirections not followed."""
    return httpx.get(f"{address}{path}", headers=headers, timeout=30)
