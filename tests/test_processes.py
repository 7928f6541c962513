import multiprocessing
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from soaking import soaked
from torch.multiprocessing.spawn import spawn
from training_helpers import Halt, halting, tiny_recipe, weights

from studio.errors import StudioError, UsageError
from studio.events import Event, Loss
from studio.home import Home
from studio.library import Library
from studio.trainers import processes
from studio.trainers.dreambooth import train_concept
from studio.trainers.processes import ALONE, Team


def test_the_processes_share_all_rows_and_none_twice() -> None:
    rows = list(range(6))
    shares = [Team(rank, 3).share(rows) for rank in range(3)]
    assert sorted(row for share in shares for row in share) == rows
    assert {len(share) for share in shares} == {2}


def _meet(rank: int, size: int, meeting: str, found: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    layer = torch.nn.Linear(2, 1)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, float(rank))
    Team(rank, size).average(one.grad for one in layer.parameters() if one.grad is not None)
    torch.nn.init.constant_(layer.weight, rank + 5)
    Team(rank, size).take_over([layer.weight])
    grads = [p.grad.flatten().tolist() for p in layer.parameters() if p.grad is not None]
    found[rank] = [*grads, layer.weight.flatten().tolist()]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@soaked
def test_a_team_takes_the_mean_of_its_gradients_and_begins_as_its_leader(tmp_path: Path):
    with multiprocessing.get_context("spawn").Manager() as manager:
        found = manager.dict()
        spawn(_meet, (3, (tmp_path / "meeting").as_uri(), found), nprocs=3)
        assert list(found.values()) == [[[1.0, 1.0], [1.0], [5.0, 5.0]]] * 3


def test_alone_a_mean_asks_no_device_for_float64() -> None:
    assert ALONE.mean(0.1, torch.device("meta")) == 0.1  # Apple's has none; this one could not give it back


def test_a_step_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with Team(0, 3).sharing_cores(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        with Team(0, 2).sharing_cores(torch.device("cpu")):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one_that_sees_as_much(tiny_sdxl: Path, homes: list[Home]) -> None:
    changes = {
        "steps": 20,
        "learning_rate": 1e-3,
        "batch_size": 3,
        "gradient_accumulation": 2,
        "new_word": True,
        "trigger": "milo0",
        "ema": 0.9,
    }
    losses: list[list[float]] = [[], []]
    trained = [
        train_concept(
            tiny_recipe(tiny_sdxl, home, changes), home,
            lambda event, seen=seen: seen.append(event.loss) if isinstance(event, Loss) else None,
            processes=count, device="cpu",
        )
        for count, home, seen in zip((1, 2), homes, losses, strict=True)
    ]  # fmt: skip
    one, two = (weights(concept) for concept in trained)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@soaked
def test_a_training_goes_on_with_more_processes(tiny_sdxl: Path, homes: list[Home]) -> None:
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], {"save_every": 3}), homes[0])
    recipe = tiny_recipe(tiny_sdxl, homes[1], {"save_every": 3})

    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(4))
    resumed = train_concept(recipe, homes[1], resume=True, processes=2, device="cpu")
    for name, tensor in weights(straight).items():
        torch.testing.assert_close(tensor, weights(resumed)[name], atol=2e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_process_that_ends_is_told_and_leaves_no_other(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(popen(command))
        return started[-1]

    def kill(event: Event) -> None:
        if isinstance(event, Loss) and event.step == 2:
            started[0].kill()
            started[0].wait()

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    recipe = tiny_recipe(tiny_sdxl, home, {"save_every": 1})
    with pytest.raises(StudioError, match="has ended with exit code -9") as failure:
        train_concept(recipe, home, kill, processes=2, device="cpu")
    assert "--resume" in failure.value.remedy
    monkeypatch.undo()
    assert train_concept(recipe, home, resume=True) == Library(home).find("milo")


def test_a_process_that_cannot_start_is_told(tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises(StudioError, match="has ended with exit code 1"):
        train_concept(tiny_recipe(tiny_sdxl, home), home, processes=2, device="cpu")
    assert Library(home).concepts() == []


@pytest.mark.parametrize(
    ("count", "device", "message"),
    [
        (0, None, "--processes is 0"),
        (3, "cpu", "3 processes cannot share a batch of 2"),
        (2, "cuda:1", "have a device each"),
    ],
)
def test_what_cannot_be_shared_is_refused_at_once(
    tiny_sdxl: Path, home: Home, count: int, device: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_concept(tiny_recipe(tiny_sdxl, home), home, processes=count, device=device)
