import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from studio.home import Home
from studio.job_runner import ensure_runner
from studio.jobs import JobStore, Order
from studio.process_identity import Identity
from studio.threads import SPINS


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Jobs of a home whose processes are all gone at the end."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    yield JobStore(Home(tmp_path))
    for process in _processes(tmp_path):
        process.kill()


def _processes(home, part="studio.job_"):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(home) in line and any(word.startswith(part) for word in line):
            found.append(process)
    return found


def submit(store, work, warm=False, pausable=False, **arguments):
    job = store.submit(Order("test", work, f"job_works:{work}", arguments, warm=warm, pausable=pausable))
    ensure_runner(store.home)
    return job.id


def wait(store, job, *states, seconds=30.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        now = store.job(job)
        if now.state in states:
            return now
        time.sleep(0.01)
    raise AssertionError(f"job {job} is {store.job(job)}, not {states}")


def running(store, job):
    """The job once it has done a step."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        now = store.job(job)
        if now.state == "running" and now.step:
            return now
        time.sleep(0.01)
    raise AssertionError(store.job(job))


def test_jobs_that_may_share_a_process_do_and_others_get_one_of_their_own(store):
    first, second = submit(store, "add", warm=True, a=1, b=2), submit(store, "add", warm=True, a=3, b=4)
    alone = submit(store, "add", a=5, b=6)
    results = [wait(store, job, "done").result for job in (first, second, alone)]
    assert [one["sum"] for one in results] == [3, 7, 11]
    assert [one["calls"] for one in results] == [1, 2, 1]
    assert results[0]["pid"] == results[1]["pid"] != results[2]["pid"]


@pytest.mark.parametrize(("own", "taken"), [({}, SPINS), ({"GOMP_SPINCOUNT": "5"}, "5")])
def test_threads_of_a_job_do_not_spin_for_long_unless_the_user_says_so(store, monkeypatch, own, taken):
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    job = submit(store, "count", warm=True, steps=1000, seconds=0.02)
    assert psutil.Process(running(store, job).pid).environ()["GOMP_SPINCOUNT"] == taken


@pytest.mark.parametrize(("ready", "calls"), [("prepare", 2), ("fail_to_prepare", 1)])
def test_a_worker_is_ready_before_there_is_a_job(store, ready, calls):
    ensure_runner(store.home, ready=f"job_works:{ready}")
    until = time.monotonic() + 30
    while not _processes(store.home.root, "studio.job_worker"):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert wait(store, submit(store, "add", warm=True, a=1, b=2), "done").result["calls"] == calls


def test_failures_keep_their_own_words_and_the_queue_goes_on(store):
    refused, crashed, fine = submit(store, "refuse"), submit(store, "crash"), submit(store, "add", a=1, b=1)
    assert wait(store, fine, "done").result["sum"] == 2
    no, broken = store.job(refused), store.job(crashed)
    assert (no.state, no.problem, no.remedy) == ("failed", "This cannot be.", "Do that.")
    assert broken.problem == "ZeroDivisionError: division by zero"
    assert "1 / 0" in broken.cause
    assert "about to divide" in store.log_file(crashed).read_text()


def test_a_running_job_is_cancelled_within_a_step_and_a_deaf_one_is_ended(store, monkeypatch):
    job = submit(store, "count", warm=True, steps=1000, seconds=0.02)
    running(store, job)
    store.cancel(job)
    began = time.monotonic()
    assert wait(store, job, "cancelled").step < 1000
    assert time.monotonic() - began < 1
    assert wait(store, submit(store, "add", warm=True, a=1, b=1), "done").result["sum"] == 2


@pytest.mark.slow
def test_one_that_does_not_listen_is_ended(store):
    job = submit(store, "deaf", warm=True)
    wait(store, job, "running")
    store.cancel(job)
    wait(store, job, "cancelled", seconds=15)


def test_a_paused_job_goes_on_where_it_was(store):
    job = submit(store, "saving", pausable=True, steps=60)
    running(store, job)
    store.pause(job)
    assert 0 < wait(store, job, "paused").step < 60
    store.resume(job)
    ensure_runner(store.home)
    assert wait(store, job, "done").result["began_at"] > 0


def test_a_worker_that_is_killed_costs_one_attempt_and_no_more_than_three(store):
    once, always, after = submit(store, "die", warm=True, times=1), submit(store, "die", warm=True), None
    after = submit(store, "add", warm=True, a=1, b=1)
    assert wait(store, once, "done").result == {"attempt": 2}
    dead = wait(store, always, "interrupted")
    assert "SIGKILL" in dead.problem
    assert "so long" in dead.problem
    assert dead.attempts == 3
    assert wait(store, after, "done").result["sum"] == 2


def test_an_end_that_could_not_be_written_down_does_not_hold_up_the_queue(store):
    once, always = submit(store, "unwritten", warm=True, times=1), submit(store, "unwritten", warm=True)
    training, after = submit(store, "unwritten"), submit(store, "add", warm=True, a=1, b=1)
    assert wait(store, after, "done").result["sum"] == 2
    assert store.job(once).result == {"attempt": 2}
    for job, attempts in ((always, 3), (training, 1)):
        now = store.job(job)
        assert (now.state, now.problem) == ("interrupted", "Its end could not be written down.")
        assert now.attempts == attempts


def test_a_runner_that_is_killed_is_replaced_and_its_job_ends_once(store):
    job, after = submit(store, "count", warm=True, steps=40, seconds=0.02), submit(store, "add", warm=True, a=1, b=1)
    worker = running(store, job).pid
    for runner in _processes(store.home.root, "studio.job_runner"):
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
    ensure_runner(store.home)
    assert wait(store, job, "done").pid == worker
    assert wait(store, after, "done").pid != worker
    assert store.job(job).attempts == 1


def test_a_second_runner_of_the_same_device_does_not_stay(store):
    job = submit(store, "count", steps=50, seconds=0.02)
    running(store, job)
    for _ in range(3):
        ensure_runner(store.home)
    wait(store, job, "done")
    assert len(_processes(store.home.root, "studio.job_runner")) == 1


def test_what_is_left_of_a_power_cut_is_put_right_when_the_runner_starts(store):
    lost = store.submit(Order("test", "count", "job_works:count", {"steps": 3, "seconds": 0.01}, warm=True)).id
    store.start(lost, Identity(1, 1.0, "an earlier boot"))
    assert wait(store, submit(store, "add", a=1, b=1), "done")
    assert wait(store, lost, "done").attempts == 2
