"""What benchmarks of speed have in common: how times spread, and what this machine could do at most."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from studio.errors import named


def spread(seconds: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Milliseconds: the median, and what a tenth of the rounds lies below and above."""
    low, high = min(seconds), max(seconds)
    if len(seconds) > 1:
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        low, high = tenths[0], tenths[-1]
    told = {"ms": statistics.median(seconds), "p10": low, "p90": high}
    return {name: round(1000 * value, digits) for name, value in told.items()}


@dataclass(frozen=True)
class Rates:
    """What the machine reaches with nothing else to do: products in FLOP/s, copies in bytes/s read and written."""

    flops: float
    bytes: float

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that so much work takes at least: arithmetic and traffic side by side."""
        return max(flops / self.flops, moved / self.bytes)


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measured: a square product, and a copy that no cache holds."""
    side, numbers = (8192, 2**28) if device.type == "cuda" else (1024, 2**25)
    a = torch.randn(side, side, device=device).to(dtype)
    source = torch.zeros(numbers, device=device, dtype=torch.uint8)
    goal = torch.empty_like(source)
    product = _best(lambda: a @ a, device)
    copy = _best(lambda: goal.copy_(source), device)
    return Rates(2 * side**3 / product, 2 * numbers / copy)


def _best(call: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    took = []
    for _ in range(rounds):
        settle(device)
        began = time.perf_counter()
        call()
        settle(device)
        took.append(time.perf_counter() - began)
    return min(took)


def milliseconds(call: Callable[[int], object], rounds: int, device: torch.device) -> float:
    """The median of `rounds` calls, each told its number, after one that warms up."""
    took = []
    for n in range(rounds + 1):
        settle(device)
        began = time.perf_counter()
        call(n)
        settle(device)
        took.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(took[1:]), 3)


def switching(change: Callable[[int], Callable[[], object]], rounds: int, device: torch.device) -> float:
    """The median, in milliseconds, of what a change and the first call of what it returns take beyond the next call:
    what is put off to the first call counts. `change` is told its number; the first one warms up."""
    took = []
    for n in range(rounds + 1):
        settle(device)
        began = time.perf_counter()
        call = change(n)
        call()
        settle(device)
        first = time.perf_counter()
        call()
        settle(device)
        took.append(1000 * (2 * first - began - time.perf_counter()))
    return round(statistics.median(took[1:]), 3)


def attempted(call: Callable[[], Any]) -> Any:
    """What `call` returns, or `failed` and the reason, so that one failure does not lose what else is measured."""
    try:
        return call()
    except Exception as error:
        return {"failed": named(error)}


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
