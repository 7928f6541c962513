"""Every way of every operation gives the same answer; times are for quiet machines."""

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
