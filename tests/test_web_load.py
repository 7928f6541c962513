"""Many clients at once, and processes that are killed under them: nothing is lost, mixed up or left hanging."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from soaking import SOAK, soaked
from test_web import place  # noqa: F401
from web import get, start, stop, wait_for, workers_of

from studio.jobs import JobStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLIENTS, SECONDS, KILLS = (50, 180, 30) if SOAK else (12, 0, 3)
OPEN = ("waiting", "running")


def call(address, endpoint, *data):
    """What an endpoint answers, asked as plainly as can be."""
    answer = httpx.post(f"{address}/gradio_api/run/{endpoint}", json={"data": list(data)}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]


def compose(address, seed):
    """Ask for a picture of its own by this client, and check that it is the one that comes."""
    asked = {"prompt": f"a <milo> and a <rex> number {seed}", "seed": seed, "steps": 1, "method": "merge"}
    job = call(address, "compose", asked)
    until, told = time.monotonic() + 300, {}
    while time.monotonic() < until:
        told = call(address, "job_show", job)
        if told["state"] not in OPEN:
            break
        time.sleep(0.2 if SOAK else 0.05)
    assert told.get("state") == "done", told
    picture = Image.open(BytesIO(get(address, told["result"]["pictures"][0]["url"]).content))
    written = json.loads(picture.info["studio"])
    assert (written["prompt"], written["seed"]) == (asked["prompt"], seed)
    return job


@pytest.fixture
def server(place):  # noqa: F811
    process = start(place.root)
    yield wait_for(process), process
    stop(process, place.root)


@soaked
def test_each_of_many_clients_gets_its_own_pictures_and_memory_stays_bounded(server, place):  # noqa: F811
    address, process = server
    compose(address, 0)
    before = psutil.Process(process.pid).memory_info().rss
    until = time.monotonic() + SECONDS

    def client(number):
        made = [compose(address, number * 10_000)]
        while time.monotonic() < until:
            made.append(compose(address, number * 10_000 + len(made)))
        return made

    with ThreadPoolExecutor(CLIENTS) as pool:
        jobs = [job for made in pool.map(client, range(1, CLIENTS + 1)) for job in made]
    assert len(set(jobs)) == len(jobs) >= CLIENTS
    assert all(job.final for job in JobStore(place).jobs(limit=100_000))
    assert psutil.Process(process.pid).memory_info().rss - before < 200 * 2**20


def test_whoever_is_killed_no_job_is_lost_and_the_queue_goes_on(place):  # noqa: F811
    random.seed(None if SOAK else 5)
    process = start(place.root)
    address, store = wait_for(process), JobStore(place)
    asked = {"prompt": "a <milo> and a <rex>", "steps": 6, "method": "merge"}
    jobs = [call(address, "compose", asked | {"seed": n}) for n in range(4)]
    try:
        for kill in range(KILLS):
            jobs.append(call(address, "compose", asked | {"seed": 100 + kill}))
            time.sleep(random.uniform(0.2, 2.0))
            victim = ("runner", "worker", "server")[kill % 3]
            if victim == "server":
                process.kill()
                process.wait()
                process = start(place.root)
                address = wait_for(process)
            else:
                for one in workers_of(place.root):
                    if f"studio.job_{victim}" in one.cmdline():
                        one.kill()
        until = time.monotonic() + 180
        while time.monotonic() < until and any(not store.job(job).final for job in jobs):
            time.sleep(0.2)
        states = {job: store.job(job).state for job in jobs}
        assert set(states.values()) <= {"done", "interrupted"}, states
        assert sum(state == "interrupted" for state in states.values()) <= KILLS // 3  # killed three times over
        zombies = [one for one in psutil.process_iter(["status", "ppid"]) if one.info["ppid"] == process.pid]
        assert all(one.info["status"] != psutil.STATUS_ZOMBIE for one in zombies)
        made = [store.job(job).result["pictures"] for job, state in states.items() if state == "done"]
        assert all(len(pictures) == 1 and Path(pictures[0]["path"]).is_file() for pictures in made)
    finally:
        stop(process, place.root)
