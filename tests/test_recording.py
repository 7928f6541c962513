import signal
from dataclasses import replace

import pytest
from filelock import Timeout

from studio.errors import Cancelled, StudioError
from studio.events import Loss, Phase, Step
from studio.jobs import JobStore, Order
from studio.process_identity import Identity
from studio.ui.recording import recorded

ORDER = Order("train", "milo", "x:y", {"recipe": {}}, device="cpu", pausable=True)


def test_what_a_terminal_does_is_a_job_with_events_and_result(home):
    seen = []
    with recorded(home, ORDER, seen.append) as job:
        job(Loss(1, 0.5, 0.1))
        running = JobStore(home).jobs()[0]
        assert (running.state, running.terminal, running.identity) == ("running", True, Identity.of())
        job.result = {"made": 1}
    done = JobStore(home).jobs()[0]
    assert (done.state, done.result, done.loss) == ("done", {"made": 1}, 0.5)
    assert seen == [Loss(1, 0.5, 0.1)]


@pytest.mark.parametrize(
    ("error", "state", "problem"),
    [(StudioError("No.", "Do."), "failed", "No."),
     (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
     (KeyboardInterrupt(), "cancelled", ""), (Cancelled("Cancelled."), "cancelled", "")],
)  # fmt: skip
def test_errors_go_on_to_the_caller_and_into_the_row(home, error, state, problem):
    with pytest.raises(type(error)), recorded(home, ORDER, lambda event: None):
        raise error
    (job,) = JobStore(home).jobs()
    assert (job.state, job.problem) == (state, problem)


def test_a_page_can_cancel_what_a_terminal_does(home):
    def work():
        with recorded(home, ORDER, lambda event: None) as job:
            JobStore(home).cancel(1)
            job(Step(1, 10))

    with pytest.raises(Cancelled):
        work()
    assert JobStore(home).job(1).state == "cancelled"


def test_the_last_step_is_written_down_however_soon_it_followed(home):
    def work():
        with recorded(home, ORDER, lambda event: None) as job:
            for step in range(1, 38):
                job(Step(step, 300))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert JobStore(home).job(1).step == 37


def test_a_finished_training_settles_those_of_its_name_that_were_paused(home):
    store = JobStore(home)
    milo, rex = (replace(ORDER, arguments={"recipe": {"name": name}}) for name in ("milo", "rex"))
    for order in (milo, rex, replace(ORDER, kind="compose", arguments={})):
        number = store.submit(order).id
        store.start(number, Identity.of())
        store.end(number, "paused")
    held = store.pause(store.submit(milo).id)  # before it began
    with recorded(home, milo, lambda event: None):
        pass
    states = [store.job(number).state for number in (1, 2, 3, held.id, 5)]
    assert states == ["cancelled", "paused", "paused", "paused", "done"]
    assert store.job(1).problem == "Job 5 finished this training."


def test_a_page_can_pause_what_a_terminal_trains(home):
    asked = []
    before = signal.signal(signal.SIGINT, lambda *_: asked.append(1))
    try:
        with recorded(home, ORDER, lambda event: None) as job:
            JobStore(home).pause(1)
            job(Step(1, 10))
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked == [1]


def test_a_home_that_cannot_be_written_costs_the_record_and_not_the_work(tmp_path):
    from studio.home import Home

    (tmp_path / "home").write_text("a file")
    seen = []
    with recorded(Home(tmp_path / "home"), ORDER, seen.append) as job:
        job(Step(1, 1))
    assert "not written down" in seen[0].message
    assert seen[1:] == [Step(1, 1)]


def test_whoever_needs_an_accelerator_waits_for_it_and_can_be_cancelled_meanwhile(home, monkeypatch):
    from types import SimpleNamespace

    from filelock import FileLock

    from studio import job_work

    monkeypatch.setattr("studio.devices.pick_device", lambda wanted: SimpleNamespace(type="cuda", index=None))
    monkeypatch.setattr(job_work, "LEASE_SECONDS", 0.02)
    (home.root / "jobs").mkdir(parents=True)
    other, seen = FileLock(home.root / "jobs" / "lease-cuda-0.lock"), []

    def hear(event):
        seen.append(event)
        if len(seen) == 4:
            other.release()

    other.acquire()
    with job_work.leased(home, "best", hear):
        assert len(seen) == 4
        with pytest.raises(Timeout):
            FileLock(other.lock_file).acquire(blocking=False)
    assert [isinstance(event, Phase) for event in seen] == [True, False, False, False]

    other.acquire()
    with pytest.raises(Cancelled), recorded(home, ORDER, lambda event: JobStore(home).cancel(1) and None):
        raise AssertionError("it has the device")
