import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from studio.errors import StudioError, UsageError
from studio.event_records import event_of
from studio.events import Done, Failed, Loss, Notice, Phase, Preview, Step, Validation
from studio.home import Home
from studio.job_work import STOPPED, working
from studio.jobs import ATTEMPTS, JobStore, Order
from studio.process_identity import Identity

ORDER = Order("compose", "two cats", "job_works:add", {"a": 1, "b": [2, "x"]}, warm=True)


@pytest.fixture
def store(tmp_path):
    return JobStore(Home(tmp_path))


@pytest.fixture
def gone():
    """A process that is no longer there."""
    return replace(Identity.of(), born=1.0)


def test_an_order_comes_back_as_it_was_given(store, tmp_path):
    job = JobStore(Home(tmp_path)).job(store.submit(ORDER).id)
    assert (job.kind, job.title, job.work, job.arguments) == (ORDER.kind, ORDER.title, ORDER.work, ORDER.arguments)
    assert (job.state, job.warm, job.pausable, job.terminal) == ("waiting", True, False, False)


def test_events_come_back_as_they_were_and_steps_only_move_the_job(store, tmp_path):
    job = store.submit(ORDER).id
    store.start(job, Identity.of())
    told = [
        Phase("train", 3), Loss(1, 0.5, 1e-4), Validation(1, 0.4, (0.5, 0.6)), Notice("é"), Failed("a", "b"),
        Preview(0, (tmp_path / "a.png",), ("a cat",)), Done(tmp_path, "done"),
    ]  # fmt: skip
    for event in told:
        store.note(job, event)
    store.note(job, Step(2, 3, 1.5))
    assert [event_of(data) for _, _, data in store.events(job)] == told
    now = store.job(job)
    assert (now.phase, now.step, now.total, now.seconds_left, now.loss) == ("train", 2, 3, 1.5, 0.5)


def test_events_after_one_are_those_that_the_reader_lacks(store):
    job = store.submit(ORDER).id
    for n in range(5):
        store.note(job, Notice(str(n)))
    third = store.events(job)[2][0]
    assert [data["message"] for _, _, data in store.events(job, after=third)] == ["3", "4"]
    assert store.events(job, kinds=("loss",)) == []


@pytest.mark.parametrize("number", [0, 7, -1])
def test_a_job_that_is_not_there_is_named(store, number):
    with pytest.raises(UsageError, match=f"no job {number}"):
        store.job(number)


def test_the_queue_is_first_come_first_served_and_can_be_reordered(store):
    a, b, c, d = (store.submit(replace(ORDER, title=title)).id for title in "abcd")
    store.move(d, -2)
    assert [job.id for job in store.jobs(("waiting",))] == [a, d, b, c]
    store.move(a, 99)
    assert [job.id for job in store.jobs(("waiting",))] == [d, b, c, a]
    store.move(a, -99)
    store.move(d, 0)
    assert [job.id for job in store.jobs(("waiting",))] == [a, d, b, c]
    assert store.next_waiting("best").id == a
    store.start(a, Identity.of())
    with pytest.raises(UsageError, match="running, not waiting"):
        store.move(a, 1)


def test_one_of_many_that_start_a_job_has_it(store, tmp_path):
    job, won = store.submit(ORDER).id, []

    def race():
        if JobStore(Home(tmp_path)).start(job, Identity.of()):
            won.append(1)

    racers = [threading.Thread(target=race) for _ in range(8)]
    for one in racers:
        one.start()
    for one in racers:
        one.join()
    assert len(won) == 1


def test_writers_in_many_threads_lose_nothing(store, tmp_path):
    job = store.submit(ORDER).id

    def write(name):
        for n in range(50):
            JobStore(Home(tmp_path)).note(job, Notice(f"{name} {n}"))

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    told = [data["message"] for _, _, data in store.events(job)]
    assert sorted(told) == sorted(f"{name} {n}" for name in "abcd" for n in range(50))


def test_cancelling_a_waiting_job_ends_it_and_a_running_one_gets_to_know(store):
    waiting, running = store.submit(ORDER).id, store.submit(ORDER).id
    store.start(running, Identity.of())
    assert store.cancel(waiting).state == store.cancel(waiting).state == "cancelled"
    assert store.cancel(running).state == "running"
    assert store.wish(running) == "cancel"
    store.end(running, "cancelled")
    assert store.wish(running) == ""


def test_a_cancel_stands_whatever_is_wished_after_it(store):
    job = store.submit(replace(ORDER, warm=False, pausable=True)).id
    store.start(job, Identity.of())
    cancelled = store.cancel(job)
    assert store.pause(job) == cancelled
    assert store.wish(job) == "cancel"


@pytest.mark.parametrize(("wishes", "state"), [(("pause",), "paused"), (("pause", "cancel"), "cancelled")])
def test_a_training_that_was_told_to_stop_ends_as_the_user_last_wished(store, wishes, state):
    job = store.submit(replace(ORDER, warm=False, pausable=True))
    store.start(job.id, Identity.of())
    stopped = StudioError("Stopped; it is saved.")
    stopped.exit_code = STOPPED

    def train():
        with working(store, job):
            for wish in wishes:
                getattr(store, wish)(job.id)
            raise stopped

    with pytest.raises(StudioError):
        train()
    assert store.job(job.id).state == state


def test_a_held_job_is_not_next_until_it_goes_on(store):
    job = store.submit(ORDER).id
    assert store.pause(job).state == "paused"
    assert store.next_waiting("best") is None
    assert store.resume(job).state == "waiting"
    assert store.next_waiting("best").id == job
    store.start(job, Identity.of())
    with pytest.raises(UsageError, match="cannot be paused while it runs"):
        store.pause(job)


def test_only_what_ended_without_result_is_retried_and_all_can_be_cloned(store):
    job = store.submit(ORDER).id
    with pytest.raises(UsageError, match="nothing to retry"):
        store.retry(job)
    store.start(job, Identity.of())
    store.end(job, "failed", problem="No.", remedy="Yes.", cause="Traceback")
    failed = store.job(job)
    assert (failed.problem, failed.remedy, failed.cause) == ("No.", "Yes.", "Traceback")
    assert store.retry(job).state == "waiting"
    store.start(job, Identity.of())
    assert store.job(job).problem == ""
    store.end(job, "done", {"sum": 3})
    copy = store.clone(job)
    assert (copy.state, copy.parent, copy.arguments) == ("waiting", job, ORDER.arguments)
    assert store.job(job).result == {"sum": 3}


def test_an_end_is_final(store):
    job = store.submit(ORDER).id
    store.start(job, Identity.of())
    assert store.end(job, "done", {})
    assert not store.end(job, "failed", problem="late")
    assert store.job(job).state == "done"


def test_work_that_may_be_repeated_waits_again_when_its_process_is_gone_but_not_for_ever(store, gone):
    job = store.submit(ORDER).id
    for _ in range(ATTEMPTS - 1):
        assert store.start(job, gone)
        assert [one.state for one in store.reconcile()] == ["waiting"]
    store.start(job, gone)
    assert [one.state for one in store.reconcile()] == ["interrupted"]
    assert store.retry(job).attempts == 0


def test_a_training_whose_process_is_gone_is_interrupted_and_one_that_lives_is_left_alone(store, gone):
    dead, alive = (store.submit(replace(ORDER, warm=False, pausable=True)).id for _ in range(2))
    store.start(dead, gone)
    store.start(alive, Identity.of())
    last = store.job(dead).heartbeat
    assert [one.id for one in store.reconcile()] == [dead]
    assert store.job(dead).state == "interrupted"
    assert "checkpoint" in store.job(dead).remedy
    assert store.job(dead).ended == last  # not when somebody looked
    assert store.job(alive).state == "running"


def test_a_cancelled_job_whose_process_is_gone_is_cancelled(store, gone):
    job = store.submit(ORDER).id
    store.start(job, gone)
    store.cancel(job)
    assert [one.state for one in store.reconcile()] == ["cancelled"]


def test_a_terminal_that_waited_and_went_leaves_no_zombie_in_the_queue(store, gone):
    job = store.begin_here(ORDER, gone).id
    assert store.next_waiting("best") is None
    assert [one.state for one in store.reconcile()] == ["interrupted"]
    assert store.retry(job).terminal is False


def test_a_process_is_not_taken_for_one_that_had_its_number_before():
    here = Identity.of()
    assert here.alive()
    assert not replace(here, born=here.born - 60).alive()
    assert not replace(here, boot="another").alive()
    replace(here, boot="another").kill()  # would end this very process


@pytest.fixture
def clock_set(monkeypatch):
    """The clock, set by so many seconds: psutil adds the start since boot to a boot time that moves with it."""
    told = psutil.Process.create_time

    def put(by):
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: told(process) + by)

    return put


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere only the clock tells when a process began")
def test_a_process_lives_on_when_the_clock_is_set(clock_set):
    here = Identity.of()
    clock_set(60)
    assert here.alive()
    assert Identity.of() == here


def test_a_process_that_an_older_studio_wrote_down_counts_as_it_did(clock_set):
    older = replace(Identity.of(), born=psutil.Process().create_time())
    assert older.alive()
    clock_set(1)
    assert older.alive()
    clock_set(60)
    assert not older.alive()


@pytest.mark.skipif(not psutil.LINUX, reason="of Linux alone")
def test_a_process_may_be_called_anything():
    here, called = Identity.of(), Path("/proc/self/comm")
    before = called.read_text()
    try:
        called.write_text("a) R 1 (b) 2")
        assert Identity.of() == here
    finally:
        called.write_text(before)


def test_forgetting_needs_an_end(store):
    job = store.submit(ORDER).id
    with pytest.raises(UsageError, match="waiting"):
        store.forget(job)
    store.cancel(job)
    store.forget(job)
    assert store.jobs() == []


def test_a_newer_studios_jobs_are_left_alone(store):
    store.submit(ORDER)
    store._db.execute("PRAGMA user_version = 99")
    with pytest.raises(UsageError, match="newer studio"):
        JobStore(store.home).jobs()
