"""One training by several processes: each takes its share of every micro-batch, and all apply the mean gradient.

`batch_size` stays what a step sees in all, so the weights are those of one process but for rounding, and a training may
go on with another number of them. The process that the user started leads: it alone talks, saves and draws.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from studio.devices import pick_device
from studio.errors import StudioError, UsageError
from studio.home import Home
from studio.trainers.recipe import Recipe

_PATIENCE = timedelta(hours=6)  # the others wait while the leader draws class pictures and previews


@dataclass(frozen=True)
class Team:
    """The processes of one training: the place `rank` of this one among `size`; alone by default."""

    rank: int = 0
    size: int = 1

    def share(self, rows: list[int]) -> list[int]:
        """Those of `rows` that this process computes."""
        return rows[self.rank :: self.size]

    @contextmanager
    def sharing_cores(self, device: torch.device) -> Iterator[None]:
        """Within, this process takes its share of a CPU's cores: more threads than cores would wait for one another."""
        threads = torch.get_num_threads()
        if self.size == 1 or device.type != "cpu":
            yield
            return
        torch.set_num_threads(max(1, threads // self.size))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the team, in one message for each type of number."""
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors if self.size > 1 else ():
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for those in by_type.values():
            flat = torch.cat([one.flatten() for one in those])
            distributed.all_reduce(flat)
            parts = (flat / self.size).split([one.numel() for one in those])
            torch._foreach_copy_(those, [part.view_as(one) for part, one in zip(parts, those, strict=True)])

    def mean(self, number: float, device: torch.device) -> float:
        """The mean of the processes' numbers."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.float64, device=device)
        self.average([tensor])
        return tensor.item()

    def agreed(self, wish: bool, device: torch.device) -> bool:
        """What the leader wishes."""
        if self.size == 1:
            return wish
        tensor = torch.tensor(float(wish), device=device)
        distributed.broadcast(tensor, 0)
        return bool(tensor.item())

    def take_over(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give all processes the leader's `tensors`: what begins from gradients may differ from device to device."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor.data, 0)

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Team()


def check_processes(recipe: Recipe, processes: int, device: str | None) -> None:
    """Raise UsageError where so many processes cannot train `recipe`."""
    if processes < 1:
        raise UsageError(f"--processes is {processes}.", "It must be at least 1.")
    if recipe.batch_size < processes:
        raise UsageError(
            f"{processes} processes cannot share a batch of {recipe.batch_size}.",
            f"Use --batch-size {processes} or more: it is what a step sees in all.",
        )
    if processes > 1 and device not in {None, "cpu", "cuda"}:
        raise UsageError(
            f"Several processes have a device each, and --device is {device!r}.", "Leave it out, or use cuda or cpu."
        )
    if processes > 1 and pick_device(device).type == "cuda" and processes > torch.cuda.device_count():
        raise UsageError(
            f"{processes} processes need as many GPUs; this machine has {torch.cuda.device_count()}.",
            "Ask for fewer, or for --device cpu.",
        )


def device_of(rank: int, processes: int, device: str | None) -> str | None:
    """Torch's name of the device of process `rank`."""
    if processes == 1:
        return device
    return f"cuda:{rank}" if pick_device(device).type == "cuda" else "cpu"


@contextmanager
def leading(home: Home, recipe: Recipe, folder: Path, processes: int, device: str | None) -> Iterator[Team]:
    """The team that trains `recipe` and meets in `folder`, led by this process; the others run while the block does.

    Raises StudioError where one of them ends in the middle.
    """
    if processes == 1:
        yield ALONE
        return
    meeting, told = folder / "meeting", recipe.model_dump(mode="json")
    meeting.unlink(missing_ok=True)
    order = {"home": str(home.root), "recipe": told, "meeting": str(meeting), "size": processes}
    others = [
        subprocess.Popen([sys.executable, "-m", "studio.trainers.follow", json.dumps(order | more)])
        for more in ({"rank": rank, "device": device_of(rank, processes, device)} for rank in range(1, processes))
    ]
    try:
        store = distributed.FileStore(str(meeting), processes)
        while not store.check([f"here {rank}" for rank in range(1, processes)]):
            _refuse_ended(others)
            time.sleep(0.05)
        with joined(store, Team(0, processes), pick_device(device).type):
            yield Team(0, processes)
    except RuntimeError as error:  # of a collective whose other end is gone
        if not isinstance(error, torch.OutOfMemoryError):
            _refuse_ended(others, error)
        raise
    finally:
        for other in others:
            other.kill()
            other.wait()
        meeting.unlink(missing_ok=True)


@contextmanager
def joined(store: distributed.Store, team: Team, kind: str) -> Iterator[None]:
    """Within, the processes of `team` reach each other, over devices of the `kind` "cuda" or "cpu"."""
    store.set(f"here {team.rank}", "")
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo", store=store, rank=team.rank, world_size=team.size, timeout=_PATIENCE
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _refuse_ended(others: list[subprocess.Popen[bytes]], cause: Exception | None = None) -> None:
    if ended := [other.returncode for other in others if other.poll() is not None]:
        raise StudioError(
            f"Another process of the training has ended with exit code {ended[0]}; what it said stands above.",
            "Go on from the newest checkpoint with --resume, if there is one; or train with one process.",
        ) from cause
