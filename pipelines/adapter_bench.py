"""What k adapters cost in a forward of the UNet: with PEFT as it is used, and with the bank, all in turns.

Networks and adapters are random, and the same in all arms; arms that compute the same function must give one answer.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

from studio.adapters import Adapter
from studio.bank import AdapterBank
from studio.events import Emit, Phase
from studio.factors import LowRank
from studio.gates import Gate, strips
from studio.hush import hushed
from studio.pipelines.compose_cost import interleaved, ratio
from studio.pipelines.random_bases import base_around, copy_of, inputs_of, random_lora, random_unet
from studio.pipelines.speed import attempted, spread, switching
from studio.pipelines.text_cache import TextCache, TextRows

Tensor = torch.Tensor
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
NONE, ONCE = "no adapter", "text computed once"
SWITCHES = 15  # times that a switch is timed


@dataclass(frozen=True)
class AdapterBench:
    """What is measured: the shape of the UNet, up to how many adapters of which rank, rows in a forward, rounds."""

    shape: str
    counts: tuple[int, ...] = (1, 2, 4, 5, 8)
    rank: int = 16
    rows: int = 2
    rounds: int = 20


@dataclass
class Arm:
    """A way to compute; `same_as` another, or as none, is how its answer is checked."""

    name: str
    call: Callable[[], Tensor]
    same_as: str | None
    ready: Callable[[], object] = field(default=lambda: None)  # before it is called, not timed
    seen: bool = True  # by the counter of operators, which compiled code does not let in


def bench_adapters(bench: AdapterBench, device: torch.device, dtype: torch.dtype, emit: Emit) -> dict[str, Any]:
    """Milliseconds of every arm, its ratio to no adapter, operators, and how far its answer is from PEFT's; and what it
    takes to let other adapters act."""
    emit(Phase(f"Build {bench.shape}"))
    unet = random_unet(bench.shape, device, dtype)
    base = base_around(copy_of(unet), "sd15" if bench.shape.startswith("sd15") else "sdxl")
    adapters = [random_lora(base, bench.rank, seed) for seed in range(max(bench.counts))]
    given = inputs_of(unet, bench.rows)
    with ExitStack() as block:
        arms, switches = _arms(bench, unet, base, adapters, given, block)
        with torch.no_grad():
            rows, seconds = timed(arms, bench.rounds, device, emit)
            took = {name: attempted(partial(switching, change, SWITCHES, device)) for name, change in switches.items()}
    return {
        "device": str(device), "dtype": str(dtype).removeprefix("torch."), "shape": bench.shape, "rows": bench.rows,
        "rank": bench.rank, "rounds": bench.rounds, "arms": rows, "switch, ms": took,
        "ratios": _ratios(seconds, max(bench.counts)),
    }  # fmt: skip


def timed(
    arms: Sequence[Arm], rounds: int, device: torch.device, emit: Emit
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What is told of every arm, the first being what the others are held against, and the seconds of its rounds; of an
    arm that raises, why it failed."""
    looked = {arms[0].name: _looked(arms[0])} | {arm.name: attempted(partial(_looked, arm)) for arm in arms[1:]}
    rows: dict[str, Any] = {name: found for name, found in looked.items() if "failed" in found}
    arms = [arm for arm in arms if arm.name not in rows]
    emit(Phase(f"Time {len(arms)} arms in turn", rounds))
    ready = {arm.name: partial(_warm, arm) for arm in arms}
    seconds = interleaved({arm.name: arm.call for arm in arms}, rounds, device, emit, ready)
    for arm in arms:
        over = ratio(seconds[arm.name], seconds[arms[0].name])
        rows[arm.name] = spread(seconds[arm.name]) | {"over none": over, "operators": looked[arm.name]["operators"]}
        if arm.same_as in seconds:
            truth = looked[arm.same_as]["answer"]
            gap = (looked[arm.name]["answer"] - truth).abs().max() / truth.abs().max()
            rows[arm.name] |= {"same as": arm.same_as, "largest difference": float(f"{float(gap):.2g}")}
    return rows, seconds


def _ratios(seconds: dict[str, list[float]], most: int) -> dict[str, Any]:
    peft, ours, gated = f"PEFT, {most}", f"ours, {most} everywhere", f"ours, {most} by region"
    pairs = {
        f"PEFT's {most} over ours": (peft, ours),
        f"PEFT's {most} over ours, {ONCE} in both": (f"{peft}, {ONCE}", f"{ours}, {ONCE}"),
        f"PEFT's {most} over ours as composed": (peft, f"{ours}, {ONCE}"),
        f"{most} gated over 1 gated": (gated, "ours, 1 by region"),
        f"{most} gated over 1 gated, {ONCE}": (f"{gated}, {ONCE}", f"ours, 1 by region, {ONCE}"),
    }
    return ratios_of(pairs, seconds)


def ratios_of(pairs: Mapping[str, tuple[str, str]], seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Of the pairs of arms that were both timed."""
    return {name: ratio(seconds[a], seconds[b]) for name, (a, b) in pairs.items() if {a, b} <= seconds.keys()}


def _arms(
    bench: AdapterBench, unet: Any, base: Any, adapters: Sequence[Adapter], given: dict[str, Any], block: ExitStack
) -> tuple[list[Arm], dict[str, Callable[[int], Callable[[], object]]]]:
    most, side = len(adapters), given["sample"].shape[-1]
    wrapped = with_peft(copy_of(unet), adapters)
    names = [one.name for one in adapters]
    arms = [Arm(NONE, lambda: unet(**given)[0], None)]
    arms.append(Arm(f"{NONE}, {ONCE}", text_once(unet, lambda: unet(**given)[0], given), NONE))

    def chosen(k: int) -> Callable[[], object]:
        return lambda: wrapped.set_adapters(names[:k], [1.0] * k)

    for k in bench.counts:
        arms.append(Arm(f"PEFT, {k}", lambda: wrapped(**given)[0], None, chosen(k)))
    kept = text_once(wrapped, lambda: wrapped(**given)[0], given)
    arms.append(Arm(f"PEFT, {most}, {ONCE}", kept, f"PEFT, {most}", chosen(most)))
    fused = with_peft(copy_of(unet), adapters)
    with hushed():
        fused.set_adapters(names, [1.0] * most)
        fused.fuse_lora(adapter_names=names)
    arms.append(Arm(f"PEFT, {most} fused", lambda: fused(**given)[0], f"PEFT, {most}"))
    merged = base_around(copy_of(unet), base.family)
    block.enter_context(AdapterBank(merged, adapters).merged([1.0] * most))
    arms.append(Arm(f"ours, {most} merged", lambda: merged.unet(**given)[0], f"PEFT, {most}"))
    ours, banks, gates = _ours(bench, base, adapters, given, block)
    arms += ours
    swapped, states = copy_of(unet), [_state(one) for one in adapters]
    swapped.load_lora_adapter(states[0], prefix=None, adapter_name="one")

    def swap(n: int) -> Callable[[], object]:
        swapped.load_lora_adapter(states[n % most], prefix=None, adapter_name="one", hotswap=True)
        return lambda: swapped(**given)

    def of_peft(set_adapters: Callable[[int], object]) -> Callable[[int], Callable[[], object]]:
        def change(n: int) -> Callable[[], object]:
            set_adapters(n)
            return lambda: wrapped(**given)

        return change

    def of_ours(gate: Callable[[int], Gate]) -> Callable[[int], Callable[[], object]]:
        def change(n: int) -> Callable[[], object]:
            installs()  # only before the first, which warms up
            return gated(banks[most], gate(n), given)

        installs = next(arm.ready for arm in ours if arm.name == f"ours, {most} everywhere")
        return change

    switches = {
        "PEFT: hot-swap of one": swap,
        "PEFT: set_adapters, all": of_peft(lambda n: wrapped.set_adapters(names, [1.0 - n / 100] * most)),
        "PEFT: set_adapters, one": of_peft(lambda n: wrapped.set_adapters([names[n % most]])),
        "ours: a gate of other scales": of_ours(lambda n: Gate(gates[f"{most} everywhere"].weights * (1 - n / 100))),
        "ours: a gate of other regions": of_ours(lambda n: gate_of(most, bench.rows, side, given["sample"], shift=n)),
    }
    return arms, switches


def _ours(
    bench: AdapterBench, base: Any, adapters: Sequence[Adapter], given: dict[str, Any], block: ExitStack
) -> tuple[list[Arm], dict[int, AdapterBank], dict[str, Gate]]:
    """The bank's arms, its banks by their number of adapters, and the gates by what they let act."""
    arms, side = [], given["sample"].shape[-1]
    banks = {k: AdapterBank(base, adapters[:k]) for k in bench.counts}
    gates = {
        f"{k} {where}": gate_of(k, bench.rows, side if where == "by region" else None, given["sample"])
        for k in bench.counts for where in ("everywhere", "by region")
    }  # fmt: skip
    installed = Installed(block)
    for what, gate in gates.items():
        k = int(what.split()[0])
        call = gated(banks[k], gate, given)
        ready = installed.only(banks[k])
        same = f"PEFT, {k}" if what.endswith("everywhere") else None
        arms.append(Arm(f"ours, {what}", call, same, ready))
        arms.append(Arm(f"ours, {what}, {ONCE}", text_once(base.unet, call, given), f"ours, {what}", ready))
    return arms, banks, gates


def _state(adapter: Adapter) -> dict[str, Tensor]:
    """The adapter as PEFT's state, its alpha being its rank."""
    found: dict[str, Tensor] = {}
    for path, factor in adapter.factors.items():
        assert isinstance(factor, LowRank)
        name = path.removeprefix("unet.")
        found |= {f"{name}.lora_A.weight": factor.down.clone(), f"{name}.lora_B.weight": factor.up.clone()}
    return found


class Installed:
    """One bank at a time, or none, on a network that several share."""

    def __init__(self, block: ExitStack) -> None:
        self._now: AdapterBank | None = None
        self._undo = ExitStack()
        block.callback(lambda: self._undo.close())

    def only(self, bank: AdapterBank | None) -> Callable[[], None]:
        """What installs `bank`, or none, and takes off the one before."""

        def ready() -> None:
            if bank is not self._now:
                self._undo.close()
                self._undo = ExitStack()
                if bank is not None:
                    self._undo.enter_context(bank.installed())
                self._now = bank

        return ready


def gated(bank: AdapterBank, gate: Gate, given: dict[str, Any]) -> Callable[[], Tensor]:
    """A forward of the bank's base, the adapters acting by `gate`."""

    def call() -> Tensor:
        with bank.use(gate):
            return bank.base.unet(**given)[0]

    return call


def gate_of(count: int, rows: int, side: int | None, like: Tensor, shift: int = 0) -> Gate:
    """All adapters everywhere, or each on a strip of its own of a side."""
    weights = torch.ones(rows, count).to(like)
    return Gate(weights) if side is None else Gate(weights, strips(count, rows, (side, side), like, shift))


def text_once(unet: Any, call: Callable[[], Tensor], given: dict[str, Any]) -> Callable[[], Tensor]:
    """`call`, a forward of `unet`, with keys and values of the text computed once for all calls."""
    text = given["encoder_hidden_states"]
    cache = TextCache(text, [object() for _ in text], TextRows())

    def once() -> Tensor:
        with cache.over(unet):
            return call()

    return once


def with_peft(unet: Any, adapters: Sequence[Adapter]) -> Any:
    """`unet` with the adapters as PEFT has them, in the precision of its weights."""
    with hushed():
        for one in adapters:
            first: Any = next(iter(one.factors.values()))
            config = LoraConfig(r=first.rank, lora_alpha=first.rank, target_modules=list(TARGETS))
            unet.add_adapter(config, adapter_name=one.name)
    layers, like = dict(unet.named_modules()), next(unet.parameters())
    for one in adapters:
        for path, factor in one.factors.items():
            assert isinstance(factor, LowRank)
            layer: Any = layers[path.removeprefix("unet.")]
            layer.lora_A[one.name].weight.data = factor.down.to(like)
            layer.lora_B[one.name].weight.data = factor.up.to(like)
    return unet.requires_grad_(False)


def _warm(arm: Arm) -> None:
    """Once, untimed: the first forward after a switch is slower than those that follow."""
    arm.ready()
    arm.call()


def _looked(arm: Arm) -> dict[str, Any]:
    arm.ready()
    return {"answer": arm.call().float(), "operators": _operators(arm.call) if arm.seen else None}


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _operators(call: Callable[[], object]) -> int:
    """How many operators that compute something were asked for."""
    with _Counter() as counter:
        call()
    return counter.count
