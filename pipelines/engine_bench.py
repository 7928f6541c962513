"""What many adapters on one base cost: against switching them with diffusers, gated, from a cache, and in memory."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from studio.adapter_writing import write_adapter
from studio.adapters import load_concept
from studio.bank import AdapterBank
from studio.concepts import Concept
from studio.events import Emit, Phase, silent
from studio.gates import Gate, strips
from studio.models import BaseModel
from studio.pipelines.adapter_bench import Installed
from studio.pipelines.baselines import Composite
from studio.pipelines.cmlora import CmLora
from studio.pipelines.compose import draw
from studio.pipelines.compose_cost import MB, interleaved, peak_memory, ratio
from studio.pipelines.random_bases import random_lora
from studio.pipelines.settings import GenerateSettings
from studio.pipelines.speed import milliseconds, settle
from studio.pipelines.switched_loop import SwitchedLoop

Tensor = torch.Tensor
PROMPTED = 5  # concepts in one picture


def bench_engine(
    base: BaseModel, other: BaseModel, concepts: Sequence[Concept], steps: int, rounds: int, emit: Emit
) -> dict[str, Any]:
    """Ratios of time with quartiles, each of one run in turns, and beside them counts.

    Five of the `concepts` are composed, and all are gated. `other` is the same base loaded again, which diffusers keeps
    for itself.
    """
    few = concepts[:PROMPTED]
    loop = SwitchedLoop(other, few)
    emit(Phase("Composite, CMLoRA and the loop that switches adapters", rounds))
    report: dict[str, Any] = {"device": str(base.device), "steps": steps, "rounds": rounds, "composed": len(few)}
    report |= loops(base, loop, few, steps, rounds, emit)
    emit(Phase("Adapters behind gates", rounds))
    report |= gates(base, concepts, rounds, emit)
    report["change of gate"]["set_adapters, ms"] = milliseconds(
        lambda n: other.pipe.set_adapters([few[n % len(few)].name]), rounds, base.device
    )
    emit(Phase("Memory"))
    report["memory"] = memory(base, few)
    return report


def loops(
    base: BaseModel, loop: SwitchedLoop, concepts: Sequence[Concept], steps: int, rounds: int, emit: Emit
) -> dict[str, Any]:
    """Composite against the same loop with `set_adapters`, which must draw the same, and CMLoRA against Composite."""
    words = ", ".join(f"a <{one.name}>" for one in concepts)
    settings = GenerateSettings(f"{words} at night, flat style", steps=steps, guidance=2.5, seed=9_500_000)
    read = {one.name: load_concept(one) for one in concepts}
    chosen = [(one, 1.0) for one in concepts]
    bank_of = partial(AdapterBank.of, load=lambda one: read[one.name])

    def ours(composer: Any) -> Tensor:
        return draw(base, settings, chosen, composer, silent, bank_of=bank_of)

    calls: dict[str, Callable[[], Tensor]] = {
        "switched": lambda: loop.draw(settings),
        "composite": lambda: ours(Composite()),
        "cmlora": lambda: ours(CmLora()),
    }
    truth, found = calls["switched"](), calls["composite"]()
    flops = {name: _flops(calls[name]) for name in ("composite", "cmlora")}
    seconds = interleaved(calls, rounds, base.device, emit)
    return {
        "composite over set_adapters": ratio(seconds["composite"], seconds["switched"]),
        "their largest difference": float((truth - found).abs().max() / truth.abs().max()),
        "cmlora over composite": {
            "time": ratio(seconds["cmlora"], seconds["composite"]),
            "FLOPs": round(flops["cmlora"] / flops["composite"], 3),
        },
        "seconds": {name: round(statistics.median(several), 3) for name, several in seconds.items()},
    }


def gates(base: BaseModel, concepts: Sequence[Concept], rounds: int, emit: Emit) -> dict[str, Any]:
    """One forward of two rows with all adapters, each in its own part, against one adapter and none; and what it takes
    to let others act."""
    adapters = [load_concept(one) for one in concepts]
    one, many = AdapterBank(base, adapters[:1]), AdapterBank(base, adapters)  # on CUDA each takes a layer's forward
    forward = _forward(base)
    single, several = (_regions(base, bank.count) for bank in (one, many))

    def gated(bank: AdapterBank, gate: Gate) -> None:
        with bank.use(gate):
            forward()

    def change(n: int) -> None:
        with many.use(_regions(base, many.count, shift=n)):
            pass

    with ExitStack() as block:
        installed = Installed(block)
        calls = {"base": forward, "one": lambda: gated(one, single), "many": lambda: gated(many, several)}
        banks = {"base": None, "one": one, "many": many}
        ready = {name: partial(_warmed, installed.only(bank), calls[name]) for name, bank in banks.items()}
        seconds = interleaved(calls, rounds, base.device, emit, ready)
        installed.only(many)()
        later = [_first_and_next(base, many, gated, n) for n in range(rounds)]
    return {
        f"{many.count} gated over 1": ratio(seconds["many"], seconds["one"]),
        "1 gated over the base": ratio(seconds["one"], seconds["base"]),
        "change of gate": {
            "made and set, ms": milliseconds(change, rounds, base.device),
            "more in its first forward, ms": round(statistics.median(later), 3),
        },
    }


def _warmed(install: Callable[[], None], call: Callable[[], object]) -> None:
    """Once, untimed: the first forward after an installation is slower than those that follow."""
    install()
    call()


def _first_and_next(base: BaseModel, bank: AdapterBank, gated: Callable[[AdapterBank, Gate], None], n: int) -> float:
    """By how many milliseconds the first forward with a new gate is slower than the next one."""
    gate = _regions(base, bank.count, shift=n)
    took = []
    for _ in range(2):
        settle(base.device)
        began = time.perf_counter()
        gated(bank, gate)
        settle(base.device)
        took.append(1000 * (time.perf_counter() - began))
    return took[0] - took[1]


def memory(base: BaseModel, concepts: Sequence[Concept]) -> dict[str, Any]:
    """The peak of a gated forward with all adapters against that with one, their files' content included, at the batch
    that composing them all takes; how often its own size each adapter more takes; and how many tensors of a weight's
    shape."""
    shapes = {tuple(one.shape) for one in base.unet.parameters() if one.dim() > 1}
    found, rows = {}, 2 * len(concepts)
    for count in (1, len(concepts)):
        with peak_memory(base, sorted(shapes)) as told:
            _installed_forward(base, concepts[:count], rows)
        found[str(count)] = told
    alone, together = found["1"], found[str(len(concepts))]
    more = together["peak MB"] - alone["peak MB"]
    own = sum(one.adapter_file.stat().st_size for one in concepts[1:]) / MB
    return {
        "rows": rows,
        "peak MB": {count: told["peak MB"] for count, told in found.items()},
        "peak over that of 1": round(together["peak MB"] / alone["peak MB"], 3),
        "beyond the weights MB": {count: told["beyond the weights MB"] for count, told in found.items()},
        "each more, times its file": round(more / own, 2),
        "weight-shaped tensors an adapter": (together["shaped"] - alone["shaped"]) / (len(concepts) - 1),
    }


def memory_beside(base: BaseModel, count: int, rank: int) -> dict[str, Any]:
    """The same of `count` random LoRAs of `rank` on the attention of `base`."""
    with TemporaryDirectory() as folder:
        concepts = [
            Concept(f"random{n}", "", "", base.source.name, base.family, "lora", Path(folder) / str(n))
            for n in range(count)
        ]
        for n, one in enumerate(concepts):
            write_adapter(random_lora(base, rank, n), one.adapter_file, "diffusers")
        return memory(base, concepts)


def _installed_forward(base: BaseModel, concepts: Sequence[Concept], rows: int) -> None:
    bank = AdapterBank(base, [load_concept(one) for one in concepts])  # and nobody else holds them
    with bank.installed(), bank.use(_regions(base, bank.count, rows)):
        _forward(base, rows)()


def _forward(base: BaseModel, rows: int = 2) -> Callable[[], None]:
    """The UNet on rows of noise at the base's native size."""
    text = base.encode(["a cat"] * rows)
    width, height = base.native_size
    factor = base.pipe.vae_scale_factor
    size = (rows, base.unet.config["in_channels"], height // factor, width // factor)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(base.device, base.dtype)
    added = None
    if text.pooled is not None:
        ids = base.time_ids((height, width), (0, 0), (height, width))
        assert ids is not None
        added = {"text_embeds": text.pooled, "time_ids": ids.expand(rows, -1)}

    @torch.no_grad()
    def forward() -> None:
        base.unet(noise, 500, text.embeds, added_cond_kwargs=added)

    return forward


def _regions(base: BaseModel, count: int, rows: int = 2, shift: int = 0) -> Gate:
    """Each adapter on a strip of its own; `shift` moves the strips."""
    width, height = (side // base.pipe.vae_scale_factor for side in base.native_size)
    weights = torch.ones(rows, count, device=base.device, dtype=base.dtype)
    return Gate(weights, strips(count, rows, (height, width), weights, shift))


def _flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
