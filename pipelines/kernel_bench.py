"""How fast the kernels are: beside the framework's ways and those of the papers' code, in turns, and beside the floor
that the machine's own rates of arithmetic and traffic set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from studio.events import Emit, Phase
from studio.kernels import attention_columns as columns
from studio.kernels import blend as blending
from studio.kernels import kronecker, multi_adapter
from studio.kernels import region_attention as regional
from studio.kernels.multi_adapter import Factors, Weights
from studio.kernels.region_attention import Regions, region_attention
from studio.kernels.widen import extended, span, widen
from studio.pipelines.compose_cost import interleaved, ratio
from studio.pipelines.speed import Rates, attempted, rates, spread

Tensor = torch.Tensor
OURS = "ours"


@dataclass(frozen=True)
class Problem:
    """One operation at one size: calls that compute the same, of which `OURS` is one, and what it takes at least.

    Those in `lighter` compute less than is asked and only set a mark.
    """

    name: str
    calls: dict[str, Callable[[], Any]]
    flops: float
    bytes: float
    lighter: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """How large: batch, heads, a side of the picture, words, width of a head, of a layer, tokens of it, adapters."""

    batch: int = 2
    heads: int = 10
    side: int = 64
    words: int = 77
    head: int = 64
    width: int = 640
    tokens: int = 8192
    adapters: int = 5


TINY = Sizes(batch=1, heads=2, side=8, words=20, head=16, width=64, tokens=64, adapters=2)


def bench_kernels(sizes: Sizes, rounds: int, device: torch.device, dtype: torch.dtype, emit: Emit) -> dict[str, Any]:
    """By operation and way: milliseconds, the ratio to ours, the share of the floor that is reached, and how far the
    answer is from that of the first way, relative to its largest number; of an operation that raises, why it failed."""
    machine = rates(device, dtype)
    found: dict[str, Any] = {}
    for make in (_with_columns, _backwards, _in_regions, _kroneckers, _linears, _blends):
        for problem in make(sizes, device, dtype):
            emit(Phase(problem.name, rounds))
            found[problem.name] = attempted(partial(_measured, problem, rounds, device, machine, emit))
    told = {"TFLOP/s": round(machine.flops / 1e12, 4), "GB/s": round(machine.bytes / 1e9, 1)}
    named = str(dtype).removeprefix("torch.")
    return {"device": str(device), "dtype": named, "rounds": rounds, "machine": told, "operations": found}


def _measured(problem: Problem, rounds: int, device: torch.device, machine: Rates, emit: Emit) -> dict[str, Any]:
    answers = {name: _flat(call()) for name, call in problem.calls.items() if name not in problem.lighter}
    truth = next(iter(answers.values()))
    seconds = interleaved(problem.calls, rounds, device, emit)
    floor = machine.floor(problem.flops, problem.bytes)
    rows: dict[str, Any] = {}
    for name, several in seconds.items():
        rows[name] = spread(several) | {"ours over it": ratio(seconds[OURS], several)}
        if name in answers:
            gap = (answers[name].double() - truth.double()).abs().max() / truth.double().abs().max()
            rows[name]["largest difference"] = float(f"{float(gap):.2g}")
    rows[OURS]["of the floor"] = round(1000 * floor / rows[OURS]["ms"], 3)
    return {"floor ms": round(1000 * floor, 4), "ways": rows}


def _flat(answer: Any) -> Tensor:
    parts = answer if isinstance(answer, tuple | list) else [answer]
    return torch.cat([one.detach().flatten().float() for one in parts])


def _heads(sizes: Sizes, device: torch.device, dtype: torch.dtype, rows: int) -> Tensor:
    """[B, H, rows, D] as a layer's heads lie: parts of wider rows."""
    made = torch.randn(sizes.batch, rows, sizes.heads, sizes.head, device=device).to(dtype)
    return made.transpose(1, 2)


def _with_columns(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Problem]:
    pixels, scale = sizes.side**2, sizes.head**-0.5
    q, k, v = (_heads(sizes, device, dtype, rows) for rows in (pixels, sizes.words, sizes.words))
    chosen = torch.arange(min(8, sizes.words), device=device).expand(sizes.batch, -1)
    shape = (sizes.batch, sizes.heads, pixels, sizes.words, sizes.head, chosen.shape[1])
    calls = {
        "every probability": lambda: _materialised(q, k, v, chosen, scale),
        "plain attention, no columns": lambda: F.scaled_dot_product_attention(q, k, v, scale=scale),
        OURS: lambda: columns.attention_columns(q, k, v, chosen, scale),
    }
    moved = columns.bytes_moved(*shape, q.element_size())
    yield Problem(
        f"attention with {chosen.shape[1]} columns, {sizes.side} x {sizes.side} pixels", calls, columns.flops(*shape),
        moved, lighter=("plain attention, no columns",),
    )  # fmt: skip


def _materialised(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As the processors of research code do it: scores, softmax, a copy of all maps, their mean over the heads."""
    batch, heads = q.shape[:2]
    rows = [one.reshape(batch * heads, *one.shape[2:]) for one in (q, k, v)]
    empty = torch.empty(batch * heads, q.shape[2], k.shape[2], dtype=q.dtype, device=q.device)
    maps = torch.baddbmm(empty, rows[0], rows[1].transpose(1, 2), beta=0, alpha=scale).softmax(-1)
    out = torch.bmm(maps, rows[2]).unflatten(0, (batch, heads))
    mean = maps.unflatten(0, (batch, heads)).mean(1)
    return out, mean.gather(2, chosen[:, None].expand(-1, mean.shape[1], -1)).transpose(1, 2).to(torch.float32)


def _backwards(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Problem]:
    """A guided step: through output and columns to the picture alone, the text needing no gradient."""
    pixels, scale = sizes.side**2, sizes.head**-0.5
    q, k, v = (_heads(sizes, device, dtype, rows) for rows in (pixels, sizes.words, sizes.words))
    q = q.detach().requires_grad_()
    chosen = torch.arange(min(8, sizes.words), device=device).expand(sizes.batch, -1)

    d_out = _heads(sizes, device, dtype, pixels)
    d_mass = torch.randn(sizes.batch, chosen.shape[1], pixels, device=device)

    def through(function: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        with torch.enable_grad():
            out, mass = function(q, k, v, chosen, scale)
            return torch.autograd.grad([out, mass], q, [d_out, d_mass.to(mass)])[0]

    calls = {
        "every probability": partial(through, _materialised),
        OURS: partial(through, columns.attention_columns),
    }
    forward = columns.flops(sizes.batch, sizes.heads, pixels, sizes.words, sizes.head, chosen.shape[1])
    yield Problem("the same and back to the pixels", calls, 2.5 * forward, 6 * q.numel() * q.element_size())


def _in_regions(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Problem]:
    side, scale = sizes.side // 2, sizes.head**-0.5
    q, k, v = (_heads(sizes, device, dtype, side**2) for _ in range(3))
    layouts = {
        "two boxes of 30 %": _boxes(side, device),
        "three tiles": (2 ** (torch.arange(side, device=device) * 3 // side)).expand(side, -1),
    }
    for name, ids in layouts.items():
        regions = Regions(ids.flatten().expand(sizes.batch, -1).contiguous())
        bias = regions.bias(dtype)
        flops = regional.flops(regions, sizes.heads, sizes.head)
        calls: dict[str, Callable[[], Any]] = {
            "a mask of all pairs": partial(F.scaled_dot_product_attention, q, k, v, bias, scale=scale),
            "plain attention, no regions": partial(F.scaled_dot_product_attention, q, k, v, scale=scale),
            OURS: partial(region_attention, q, k, v, regions, scale),
        }
        yield Problem(
            f"attention in {name}, {side} x {side} pixels, {regions.kept:.0%} of the pairs", calls, flops,
            4 * q.numel() * q.element_size(), lighter=("plain attention, no regions",),
        )  # fmt: skip


def _boxes(side: int, device: torch.device) -> Tensor:
    """Ids [side, side] of two boxes of about 30 % each, on ground that is nobody's."""
    ids = torch.zeros(side, side, dtype=torch.long, device=device)
    height, width = round(0.75 * side), round(0.4 * side)
    ids[side - height :, :width], ids[side - height :, side - width :] = 1, 2
    return ids


def _kroneckers(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Problem]:
    width = 2 * sizes.width
    x = torch.randn(sizes.tokens // 2, width, device=device).to(dtype)
    down, up = (torch.randn(*size, device=device).to(dtype) * 0.1 for size in ((16, width), (width, 16)))
    for a1, a2 in ((64, 4), (16, 16)):
        a = torch.randn(a1, a2, device=device).to(dtype) * 0.1
        b = torch.randn(width // a1, width // a2, device=device).to(dtype) * 0.1

        def product(a: Tensor = a, b: Tensor = b) -> Tensor:
            return x @ torch.einsum("qi,pj->qpij", a, b).reshape(width, width).T

        def a_first(a: Tensor = a, b: Tensor = b) -> Tensor:
            grid = x.unflatten(-1, (a.shape[1], b.shape[1]))
            return (kronecker.mixed(a, grid) @ b.T).flatten(-2)

        calls = {
            "the product made, as PEFT's LoKr": product,
            "a first, as the authors": a_first,
            "LoRA of rank 16": lambda: x @ down.T @ up.T,
            OURS: partial(kronecker.kronecker_linear, x, a, b),
        }
        yield Problem(
            f"Kronecker {a1} x {a2} on {width} x {width}, {len(x)} tokens", calls, kronecker.flops(len(x), a, b),
            kronecker.bytes_moved(len(x), a, b), lighter=("LoRA of rank 16",),
        )  # fmt: skip


def _linears(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Problem]:
    k, rank, width, tokens = sizes.adapters, 16, sizes.width, sizes.tokens
    x = torch.randn(tokens, width, device=device).to(dtype)
    weight = torch.randn(width, width, device=device).to(dtype) / width**0.5
    factors = Factors(*(torch.randn(k, rank, width, device=device).to(dtype) * 0.05 for _ in range(2)))
    owner = (torch.arange(tokens, device=device) * 7919) % k
    gates = {"everywhere": torch.ones(tokens, k, device=device), "by region": F.one_hot(owner, k).float()}
    for where, gate in gates.items():
        weights = Weights(gate.to(dtype))

        def loop(weights: Weights = weights) -> Tensor:
            result = F.linear(x, weight)
            for n in range(k):
                result = result + F.linear(F.linear(x, factors.down[n]), factors.up[n].T) * weights.dense[:, n, None]
            return result

        def added(weights: Weights = weights) -> Tensor:
            return weights.cheapest(x, F.linear(x, weight), factors, weights)

        down = factors.down.flatten(0, 1)[None]
        both, _, _ = extended(weight, factors.up.flatten(0, 1), 0, 1)

        def at_once(weights: Weights = weights, down: Tensor = down, both: Tensor = both) -> Tensor:
            wide = widen(x, down, weights.dense, rank)
            return F.linear(wide[:, span(0, 1, width, k * rank)], both)

        acting = int((gate != 0).sum())
        flops = 2 * tokens * width * width + multi_adapter.flops(acting, rank, width, width)
        ours, other = (at_once, added) if device.type == "cuda" else (added, at_once)
        calls = {
            "one after the other, as PEFT": loop,
            "added to the layer's output" if device.type == "cuda" else "one product with the layer": other,
            "the layer alone": lambda: F.linear(x, weight),
            OURS: ours,
        }
        yield Problem(
            f"linear layer with {k} adapters {where}, {width} x {width}, {tokens} tokens", calls, flops,
            (2 * x.numel() + weight.numel()) * x.element_size(), lighter=("the layer alone",),
        )  # fmt: skip


def _blends(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Problem]:
    branches = sizes.adapters + 1
    predictions = torch.randn(branches, 2, 1, 4, 2 * sizes.side, 2 * sizes.side, device=device).to(dtype)
    weights = torch.rand(branches, 1, 2 * sizes.side, 2 * sizes.side, device=device)
    calls = {
        "multiplied, summed, guided": partial(blending.reference, predictions, weights, 5.0),
        OURS: partial(blending.blend, predictions, weights, 5.0),
    }
    moved = blending.bytes_moved(branches, 2, predictions[0, 0].numel(), predictions.element_size())
    yield Problem(f"{branches} branches blended and guided", calls, 0, moved)
