"""What k adapters cost in a forward that goes through compiled blocks, beside PEFT's, and what is compiled again."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.utils import counters

from studio.adapters import Adapter
from studio.bank import AdapterBank
from studio.bank_layers import Layer
from studio.events import Emit, Phase
from studio.gates import Gate
from studio.models import BaseModel
from studio.pipelines.adapter_bench import (
    NONE,
    ONCE,
    AdapterBench,
    Arm,
    gate_of,
    gated,
    ratios_of,
    text_once,
    timed,
    with_peft,
)
from studio.pipelines.attention_bias import BatchBias
from studio.pipelines.compiled import CompiledBlocks
from studio.pipelines.random_bases import base_around, copy_of, inputs_of, random_lora, random_unet
from studio.pipelines.speed import attempted
from studio.pipelines.text_cache import TextCache, TextRows

Tensor = torch.Tensor


@torch.no_grad()
def bench_compiled(bench: AdapterBench, device: torch.device, dtype: torch.dtype, emit: Emit) -> dict[str, Any]:
    """Milliseconds of a forward with the most adapters of `bench` and with none, compiled and as it is, the text
    computed once; and how many functions other gates and adapters need."""
    most = max(bench.counts)
    emit(Phase(f"Build and compile {bench.shape}"))
    unet = random_unet(bench.shape, device, dtype)
    base = base_around(copy_of(unet), "sd15" if bench.shape.startswith("sd15") else "sdxl")
    adapters = [random_lora(base, bench.rank, seed) for seed in range(most)]
    given = inputs_of(unet, bench.rows)
    like = given["sample"]
    regions = [gate_of(most, bench.rows, like.shape[-1], like, shift) for shift in range(3)]
    bank = AdapterBank(base, adapters)
    with bank.installed():
        arms = _arms(unet, bank, regions[0], given)
        rows, seconds = timed(arms, bench.rounds, device, emit)
    names = [arm.name for arm in arms]
    others = [*regions, Gate(0.3 * regions[0].weights)]
    return {
        "device": str(device), "dtype": str(dtype).removeprefix("torch."), "shape": bench.shape, "rows": bench.rows,
        "rank": bench.rank, "rounds": bench.rounds, "arms": rows, "ratios": _ratios(names, seconds),
        "compiled again": attempted(lambda: _again(base, adapters, others, given)),
    }  # fmt: skip


def _arms(unet: Any, bank: AdapterBank, regions: Gate, given: dict[str, Any]) -> list[Arm]:
    """Pairs: as it is, and compiled."""
    most = bank.count
    wrapped = with_peft(copy_of(unet), bank.adapters)
    wrapped.set_adapters([one.name for one in bank.adapters], [1.0] * most)
    arms: list[Arm] = []

    def pair(name: str, plain: Callable[[], Tensor], compiled: Callable[[], Tensor], same: str | None = None) -> None:
        arms.append(Arm(f"{name}, {ONCE}", plain, same))
        arms.append(Arm(f"{name}, {ONCE}, compiled", compiled, f"{name}, {ONCE}", seen=False))

    pair(NONE, text_once(unet, lambda: unet(**given)[0], given), through_blocks(unet, given))
    peft = text_once(wrapped, lambda: wrapped(**given)[0], given)
    pair(f"PEFT, {most}", peft, through_blocks(wrapped, given))
    everywhere = Gate(torch.ones_like(regions.weights))
    for name, gate, same in (("everywhere", everywhere, f"PEFT, {most}, {ONCE}"), ("by region", regions, None)):
        plain = text_once(bank.base.unet, gated(bank, gate, given), given)
        pair(f"ours, {most} {name}", plain, through_bank(bank, gate, given), same)
    return arms


def _ratios(names: Sequence[str], seconds: dict[str, list[float]]) -> dict[str, Any]:
    none, compiled_none, _, peft, _, everywhere, plain, regions = names
    pairs = {
        "none compiled over not": (compiled_none, none),
        "ours by region, compiled over not": (regions, plain),
        "PEFT's over ours everywhere, both compiled": (peft, everywhere),
        "ours by region over none, both compiled": (regions, compiled_none),
    }
    return ratios_of(pairs, seconds)


def through_blocks(
    unet: Any, given: dict[str, Any], layers: Sequence[Layer] = (), gate: Gate | None = None
) -> Callable[[], Tensor]:
    """A forward of `unet` with the text computed once, in which the adapters of `layers` act by `gate`."""
    sample, text = given["sample"], given["encoder_hidden_states"]
    size = (sample.shape[2], sample.shape[3])
    blocks, bias = CompiledBlocks(unet, layers), BatchBias([], size, sample)
    cache = TextCache(text, [object() for _ in text], TextRows())

    def call() -> Tensor:
        with cache.over(unet, blocks.readers), blocks.over(size, gate, bias, cache):
            return unet(**given)[0]

    return call


def through_bank(bank: AdapterBank, gate: Gate, given: dict[str, Any]) -> Callable[[], Tensor]:
    """The same with all adapters of `bank`, which has to be installed when it is called."""
    made: list[Callable[[], Tensor]] = []

    def call() -> Tensor:
        with bank.use(gate):
            if not made:
                made.append(through_blocks(bank.base.unet, given, bank.hooked, bank.gate))
            return made[0]()

    return call


@torch.no_grad()
def _again(
    base: BaseModel, adapters: Sequence[Adapter], gates: Sequence[Gate], given: dict[str, Any]
) -> dict[str, int]:
    """How many functions are compiled for other gates, and for other adapters, where one was for the first gate."""
    found: dict[str, int] = {}

    def drawn(some: Sequence[Adapter], gate: Gate) -> int:
        before = counters["stats"]["unique_graphs"]
        bank = AdapterBank(base, some)
        with bank.installed():
            through_bank(bank, gate, given)()
        return counters["stats"]["unique_graphs"] - before

    drawn(adapters, gates[0])
    found["other scales and regions"] = sum(drawn(adapters, gate) for gate in gates[1:])
    found["other adapters"] = drawn([*adapters[1:], adapters[0]], gates[0])
    found["half as many"] = drawn(adapters[: len(adapters) // 2], gates[0].of(list(range(len(adapters) // 2))))
    return found
