import time
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from studio.events import silent
from studio.models import BaseModel
from studio.picturebook import SAMPLE_SUBJECTS
from studio.pipelines.compose_arms import Ask, Known, arms_of
from studio.pipelines.compose_cost import interleaved, method_costs, peak_memory, ratio

METHODS = ["merge", "composite", "regional", "clora"]


@pytest.fixture(scope="module")
def costs(base, tiny_concepts):
    members = tuple(Known(one, SAMPLE_SUBJECTS[one.name]) for one in tiny_concepts)
    ask = Ask(members, ("night", "flat"), (3,), 4, 2.5)
    return method_costs(base, ask, arms_of(METHODS), 1, silent)


def test_rows_are_those_of_the_methods(costs):
    """Of four steps, each with words and without: composite has two branches, CLoRA three, and looks in two steps."""
    kinds = ("rows", "cached rows", "looked rows", "backward rows")
    assert {name: tuple(row[kind] for kind in kinds) for name, row in costs.items()} == {
        "merge": (8, 0, 0, 0), "composite": (16, 0, 0, 0), "regional": (8, 0, 0, 0), "clora": (24, 0, 6, 6),
    }  # fmt: skip
    assert [costs[name]["rows over merge"] for name in METHODS] == [1, 2, 1, 3.75]


def test_costs_are_beside_those_of_merging(costs):
    assert costs["merge"]["time over merge"] == {"value": 1, "low": 1, "high": 1}
    assert costs["merge"]["FLOPs over merge"] == costs["merge"]["memory over merge"] == 1
    assert costs["clora"]["FLOPs over merge"] > costs["composite"]["FLOPs over merge"] > 1.8
    assert costs["clora"]["beyond the weights MB"] > costs["merge"]["beyond the weights MB"] > 0


def test_on_cuda_what_lay_there_before_is_not_counted(monkeypatch):
    """A base of 4 MB beside another's 30; the call takes 5 more."""
    allocated = iter((34e6,))
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: next(allocated))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 39e6)
    unet = torch.nn.Linear(1000, 1000, bias=False)
    base = SimpleNamespace(unet=unet, vae=torch.nn.Identity(), text_encoders=[], device=torch.device("cuda"))
    with peak_memory(cast(BaseModel, base)) as told:
        pass
    assert (told["peak MB"], told["beyond the weights MB"]) == (9, 5)


def test_rounds_visit_everyone_in_turn():
    visited = []
    calls = {name: lambda name=name: visited.append(name) or time.sleep(0.001) for name in "abc"}
    seconds = interleaved(calls, 2, torch.device("cpu"))
    assert "".join(visited) == "abc" + "bca" + "cab"
    assert [len(found) for found in seconds.values()] == [2, 2, 2]
    assert min(min(found) for found in seconds.values()) >= 0.001


def test_ratios_are_of_rounds():
    assert ratio([2, 4, 6, 20], [2, 2, 2, 2]) == {"value": 2.5, "low": 1.75, "high": 4.75}
