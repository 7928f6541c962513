"""Counts, answers and names; ratios of time are for quiet machines."""

from types import SimpleNamespace

import pytest
import torch

from studio.events import silent
from studio.pipelines import compiled
from studio.pipelines.adapter_bench import AdapterBench, Arm, bench_adapters, ratios_of, timed
from studio.pipelines.compiled_bench import bench_compiled
from studio.pipelines.random_bases import SHAPES
from studio.pipelines.speed import milliseconds, switching

CPU = torch.device("cpu")

SMALL = {
    "sample_size": 4, "block_out_channels": (8, 16, 16), "attention_head_dim": (1, 2, 2), "norm_num_groups": 4,
    "transformer_layers_per_block": (1, 1, 1), "cross_attention_dim": 16, "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def report():
    SHAPES["sdxl-test"] = SHAPES["sdxl"] | SMALL
    try:
        return bench_adapters(
            AdapterBench("sdxl-test", (1, 3), 2, rounds=1), torch.device("cpu"), torch.float32, silent
        )
    finally:
        del SHAPES["sdxl-test"]


def test_arms_that_compute_the_same_give_one_answer(report):
    compared = {name: row for name, row in report["arms"].items() if "same as" in row}
    assert {"PEFT, 3 fused", "ours, 3 merged", "ours, 1 everywhere", "ours, 3 everywhere"} <= compared.keys()
    assert all(row["largest difference"] < 1e-5 for row in compared.values())


def test_the_adapters_of_peft_grow_in_operators_and_ours_do_not(report):
    operators = {name: row["operators"] for name, row in report["arms"].items()}
    assert operators["PEFT, 3"] - operators["PEFT, 1"] == 2 * (operators["PEFT, 1"] - operators["no adapter"])
    assert operators["ours, 3 everywhere"] == operators["ours, 1 everywhere"]
    assert operators["ours, 3 merged"] == operators["no adapter"]
    assert operators["no adapter, text computed once"] < operators["no adapter"]


def test_every_ratio_and_switch_is_told(report):
    assert len(report["ratios"]) == 5
    assert all(found["low"] <= found["value"] <= found["high"] for found in report["ratios"].values())
    assert set(report["switch, ms"]) == {
        "PEFT: set_adapters, all", "PEFT: set_adapters, one", "PEFT: hot-swap of one", "ours: a gate of other scales",
        "ours: a gate of other regions",
    }  # fmt: skip


def test_an_arm_that_fails_does_not_lose_the_others():
    def broken() -> torch.Tensor:
        raise ValueError("no such arm")

    arms = [Arm("a", lambda: torch.ones(1), None), Arm("b", broken, "a"), Arm("c", lambda: torch.ones(1), "b")]
    rows, seconds = timed(arms, 1, CPU, silent)
    assert rows["b"] == {"failed": "ValueError: no such arm"}
    assert list(seconds) == ["a", "c"]
    assert rows["c"]["over none"]["value"] > 0
    assert ratios_of({"b over a": ("b", "a"), "c over a": ("c", "a")}, seconds).keys() == {"c over a"}


def test_what_a_change_puts_off_to_its_first_call_counts(monkeypatch):
    """A clock that only work moves: 1 s for a change, 5 for its first call, 2 for every other."""
    now, waits = [0.0], []
    monkeypatch.setattr("studio.pipelines.speed.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr("studio.pipelines.speed.settle", waits.append)

    def change(n: int):
        now[0] += 1
        costs = iter((5, 2))
        return lambda: now.__setitem__(0, now[0] + next(costs))

    assert switching(change, 3, CPU) == 1000 * (1 + 5 - 2)
    assert len(waits) == 4 * 3
    assert milliseconds(change, 3, CPU) == 1000
    assert len(waits) == 4 * 3 + 4 * 2


def test_compiled_arms_give_the_same_answers_and_compile_nothing_again(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setitem(SHAPES, "sdxl-test", SHAPES["sdxl"] | SMALL)
    bench = AdapterBench("sdxl-test", (4,), 16, rounds=1)
    found = bench_compiled(bench, torch.device("cpu"), torch.float32, silent)
    assert [name.endswith("compiled") for name in found["arms"]] == [False, True] * 4
    differences = [row["largest difference"] for row in found["arms"].values() if "same as" in row]
    assert len(differences) == 5
    assert max(differences) < 1e-5
    assert found["compiled again"] == {"other scales and regions": 0, "other adapters": 0, "half as many": 2}
