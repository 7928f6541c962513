"""The base's training script: what it keeps others from spoiling."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from studio.errors import StudioError
from studio.trainers.picturebook import _alone_in, _end_with_parent, _processes, taught_stage
from studio.trainers.picturebook_text import build_towers, train_tokenizer
from studio.trainers.picturebook_unet import TextSide


def test_towers_are_taught_once_a_run(tmp_path: Path):
    tokenizer = train_tokenizer(0)
    before = TextSide(tokenizer, *build_towers(tokenizer))
    states = before.encode(["a red cat"])[0]
    taught = taught_stage(tmp_path, 1, 1, before).encode(["a red cat"])[0]
    again = taught_stage(tmp_path, 10**9, 10**9, before).encode(["a red cat"])[0]
    assert torch.equal(taught, again)
    assert not torch.equal(taught, states)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="nothing says which cores are allowed")
def test_a_team_is_as_large_as_the_cores_it_may_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 7})
    assert [_processes(batch, torch.device("cpu")) for batch in (32, 6, 1)] == [2, 3, 1]
    assert _processes(32, torch.device("cuda")) == 1


def test_a_second_team_is_kept_out_of_a_run(tmp_path: Path):
    with FileLock(tmp_path / "lock"), pytest.raises(StudioError, match="Another process"), _alone_in(tmp_path):
        pass
    with _alone_in(tmp_path):
        assert (tmp_path / "lock").exists()


def _work(line: Connection) -> None:
    line.send("at work")
    _end_with_parent()


def _begin_team(line: Connection) -> None:
    member = multiprocessing.get_context("spawn").Process(target=_work, args=(line,))
    member.start()
    line.close()
    member.join()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_team_ends_with_the_process_that_began_it():
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    parent = context.Process(target=_begin_team, args=(there,))
    parent.start()
    there.close()
    assert here.recv() == "at work"
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    assert here.poll(60)
    with pytest.raises(EOFError):  # nobody holds the other end any more
        here.recv()
