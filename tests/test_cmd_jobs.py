import json

import pytest

from studio.jobs import JobStore, Order
from studio.process_identity import Identity


@pytest.fixture
def store(home, monkeypatch):
    monkeypatch.setattr("studio.ui.service.ensure_runner", lambda home, device: None)
    return JobStore(home)


@pytest.fixture
def waiting(store):
    return [store.submit(Order("compose", title, "x:y", {"prompt": title})).id for title in ("one", "two", "three")]


def test_without_jobs_the_list_says_how_some_come_about(run_studio, store):
    assert "There is no job" in run_studio("jobs", "list").out


def test_jobs_are_listed_moved_cancelled_and_forgotten(run_studio, store, waiting):
    assert run_studio("jobs", "move", waiting[2], "--", "-2").code == 0
    listed = json.loads(run_studio("jobs", "list", "--json").out)["jobs"]
    assert [job["id"] for job in listed] == [waiting[2], waiting[0], waiting[1]]
    assert "cancelled" in run_studio("jobs", "cancel", waiting[0]).out
    assert run_studio("jobs", "forget", waiting[0]).code == 0
    assert run_studio("jobs", "show", waiting[0]).code == 2


def test_a_job_is_held_goes_on_is_retried_and_cloned(run_studio, store, waiting):
    assert "paused" in run_studio("jobs", "pause", waiting[0]).out
    assert "waiting" in run_studio("jobs", "resume", waiting[0]).out
    run_studio("jobs", "cancel", waiting[0])
    assert "waiting" in run_studio("jobs", "retry", waiting[0]).out
    assert run_studio("jobs", "clone", waiting[0]).code == 0
    assert store.jobs()[-1].parent == waiting[0]


def test_watching_ends_with_the_jobs_own_failure(run_studio, store, waiting):
    store.start(waiting[0], Identity.of())
    store.end(waiting[0], "failed", problem="No room.", remedy="Make some.")
    ended = run_studio("jobs", "watch", waiting[0])
    assert ended.code == 1
    assert "No room." in ended.err
    assert "Make some." in ended.err


@pytest.mark.parametrize("words", [("show", "99"), ("cancel", "99"), ("retry", "1"), ("list", "--state", "odd")])
def test_what_is_not_there_is_wrong_usage(run_studio, store, waiting, words):
    assert run_studio("jobs", *words).code == 2


def test_a_job_whose_process_is_gone_is_found_out_by_any_look(run_studio, store, waiting):
    store.start(waiting[0], Identity(1, 1.0, "an earlier boot"))
    assert json.loads(run_studio("jobs", "show", waiting[0], "--json").out)["state"] == "interrupted"


def test_letting_others_in_needs_a_password(run_studio, home, monkeypatch):
    monkeypatch.delenv("STUDIO_PASSWORD", raising=False)
    ended = run_studio("ui", "--host", "0.0.0.0", "--no-browser")
    assert ended.code == 2
    assert "STUDIO_PASSWORD" in ended.err
