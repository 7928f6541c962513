"""Every way of every operation gives the same answer; times are for quiet machines."""

import json

import pytest
import torch

from studio.events import silent
from studio.pipelines.kernel_bench import OURS, TINY, bench_kernels
from studio.pipelines.speed import Rates, rates, spread


@pytest.fixture(scope="module")
def report():
    return bench_kernels(TINY, 2, torch.device("cpu"), torch.float32, silent)


def test_all_ways_agree(report):
    for operation, found in report["operations"].items():
        assert OURS in found["ways"], operation
        for way in found["ways"].values():
            assert way.get("largest difference", 0) < 1e-5


def test_ways_that_compute_less_are_not_compared(report):
    lighter = [name for found in report["operations"].values() for name, way in found["ways"].items()
               if "largest difference" not in way]  # fmt: skip
    assert set(lighter) == {
        "plain attention, no columns", "plain attention, no regions", "LoRA of rank 16", "the layer alone",
    }  # fmt: skip


def test_every_operation_has_a_floor(report):
    assert all(found["floor ms"] > 0 for found in report["operations"].values())
    assert all(found["ways"][OURS]["of the floor"] > 0 for found in report["operations"].values())


def test_one_operation_that_fails_does_not_lose_the_others(monkeypatch, report, run_studio, tmp_path):
    def broken(*given: object) -> torch.Tensor:
        raise ValueError("no such kernel")

    monkeypatch.setattr("studio.pipelines.kernel_bench.region_attention", broken)
    order = ("bench", "kernels", "--tiny", "--rounds", "1", "--device", "cpu")
    ended = run_studio(*order, "--out", tmp_path)
    found = json.loads((tmp_path / "kernels.json").read_text())["operations"]
    assert found.keys() == report["operations"].keys()
    failed = {name: one["failed"] for name, one in found.items() if "failed" in one}
    assert set(failed.values()) == {"ValueError: no such kernel"}
    assert all("pixels" in name and "pairs" in name for name in failed)
    assert (ended.code, "no such kernel" in ended.err, "blended" in ended.out) == (1, True, True)


def test_a_floor_is_arithmetic_or_traffic_whichever_takes_longer():
    machine = Rates(flops=100.0, bytes=10.0)
    assert machine.floor(200, 10) == 2
    assert machine.floor(200, 30) == 3


def test_what_the_machine_reaches_is_measured():
    found = rates(torch.device("cpu"), torch.float32)
    assert found.flops > 1e8
    assert found.bytes > 1e7


def test_times_are_told_by_median_and_tenths():
    assert spread([n / 1000 for n in range(11)]) == {"ms": 5.0, "p10": 1.0, "p90": 9.0}
    assert spread([0.002]) == {"ms": 2.0, "p10": 2.0, "p90": 2.0}
