"""What each way to compose costs: rows through the UNet, arithmetic, memory, and time beside plain merging.

Counts do not shake; times do, so every round draws one picture by each method in turn and only ratios are compared.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from studio.events import Emit, Phase, Step, silent
from studio.models import BaseModel
from studio.pipelines.compose import denoise, opened
from studio.pipelines.compose_arms import Arm, Ask, compose_in_a_row, layout_of
from studio.pipelines.speed import settle
from studio.tensor_memory import TensorMemory, weight_bytes

MERGE = "merge"
MB = 1e6


def method_costs(base: BaseModel, ask: Ask, arms: Sequence[Arm], rounds: int, emit: Emit) -> dict[str, dict[str, Any]]:
    """Of one picture by each arm, in rows (with and without words each one), and in ratios to `merge`, one of them.

    `rows` are full forwards, `cached rows` those with deep features of an earlier one, `looked rows` those that end
    after the attention maps; `backward rows` had gradients. `over merge` is of all rows that were begun.
    """
    emit(Phase("Count what each method costs", len(arms)))
    found: dict[str, dict[str, Any]] = {}
    for done, arm in enumerate(arms):
        found[arm.name] = _counted(base, ask, arm)
        emit(Step(done + 1, len(arms)))
    calls = {arm.name: _drawing(base, ask, arm) for arm in arms}
    emit(Phase("Time the methods in turn", rounds))
    seconds = interleaved(calls, rounds, base.device, emit)
    for name, row in found.items():
        begun = sum(row[kind] for kind in ("rows", "cached rows", "looked rows"))
        merge = found[MERGE]
        row["rows over merge"] = round(begun / merge["rows"], 3)
        row["FLOPs over merge"] = round(row["GFLOP"] / merge["GFLOP"], 3)
        row["memory over merge"] = round(row["peak MB"] / merge["peak MB"], 3)
        row["seconds"] = round(statistics.median(seconds[name]), 3)
        row["time over merge"] = ratio(seconds[name], seconds[MERGE])
    return found


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    emit: Emit = silent,
    ready: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call in every round; each round begins with another one, and one before the first warms up.

    What makes a call `ready` is not timed, and nobody's garbage is collected meanwhile.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            if ready is not None:
                ready[name]()
            took = _timed(calls[name], device)
            if turn:
                seconds[name].append(took)
        emit(Step(max(turn, 0), rounds))
    return seconds


def _timed(call: Callable[[], object], device: torch.device) -> float:
    gc.disable()
    try:
        settle(device)
        began = time.perf_counter()
        call()
        settle(device)
        return time.perf_counter() - began
    finally:
        gc.enable()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The median of the rounds' ratios, with the quarter of the rounds below and above."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return {"value": round(statistics.median(found), 3), "low": round(low, 3), "high": round(high, 3)}


@contextmanager
def peak_memory(base: BaseModel, shapes: Sequence[tuple[int, ...]] = ()) -> Iterator[dict[str, Any]]:
    """Fills in `peak MB` of all tensors, the base's weights among them, and `shaped`: how many new ones had one of
    `shapes`. On CUDA the peak is the allocator's, less what else lay there before."""
    told: dict[str, Any] = {}
    weights, before = weight_bytes(base.unet, base.vae, *base.text_encoders), 0
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
        before = torch.cuda.memory_allocated(base.device)
    with TensorMemory(shapes) as memory:
        yield told
    peak = weights + memory.peak
    if base.device.type == "cuda":
        peak = weights + torch.cuda.max_memory_allocated(base.device) - before
    told |= {"peak MB": round(peak / MB, 3), "beyond the weights MB": round((peak - weights) / MB, 3)}
    told["shaped"] = memory.shaped


def _drawing(base: BaseModel, ask: Ask, arm: Arm) -> Callable[[], object]:
    assert arm.method is not None
    make, boxes = arm.method.make, arm.boxes
    return lambda: compose_in_a_row(base, ask, make(), boxes)


def _counted(base: BaseModel, ask: Ask, arm: Arm) -> dict[str, Any]:
    assert arm.method is not None
    composer = arm.method.make()
    settings = ask.settings([f"a <{one.concept.name}>" for one in ask.members], base.native_size)
    chosen, layout = [(one.concept, 1.0) for one in ask.members], layout_of(ask.members) if arm.boxes else None
    with (
        peak_memory(base) as memory,
        FlopCounterMode(display=False) as flops,
        _backward_rows(base) as backwards,
        opened(base, settings, chosen, composer, silent, layout) as run,
        torch.no_grad(),
    ):
        denoise(run, composer, settings, silent)
    asked = run.denoiser
    return {
        "rows": asked.rows, "cached rows": asked.cached_rows, "looked rows": asked.looked,
        "backward rows": sum(backwards), "GFLOP": round(flops.get_total_flops() / 1e9, 3),
        "peak MB": memory["peak MB"], "beyond the weights MB": memory["beyond the weights MB"],
    }  # fmt: skip


@contextmanager
def _backward_rows(base: BaseModel) -> Iterator[list[int]]:
    """The rows whose gradient reaches the UNet's first layer."""
    rows: list[int] = []

    def watch(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: rows.append(len(gradient)))

    hook = base.unet.conv_in.register_forward_hook(watch)
    try:
        yield rows
    finally:
        hook.remove()
