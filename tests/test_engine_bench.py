"""Counts and outputs; ratios of time are for quiet machines."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_models import build_lora
from safetensors.torch import load_file, save_file
from soaking import soaked

from studio.bank import AdapterBank
from studio.concepts import Concept
from studio.events import silent
from studio.models import BaseModel, find_base, load_base
from studio.pipelines import engine_bench
from studio.pipelines.engine_bench import bench_engine, gates, loops, memory, memory_beside
from studio.pipelines.switched_loop import SwitchedLoop


def learned(tiny_sdxl: Path, folder: Path, **options: Any) -> list[Concept]:
    """Five concepts with random adapters of one shape."""
    found = []
    for n, name in enumerate(("a1", "b2", "c3", "d4", "e5")):
        (folder / name).mkdir()
        build_lora(tiny_sdxl, folder / name / "adapter.safetensors", seed=n, **options)
        found.append(Concept(name, "sks", "cat", "tiny", "sdxl", "lora", folder / name))
    return found


@pytest.fixture(scope="module")
def five(tiny_sdxl, tmp_path_factory) -> list[Concept]:
    """With adapters for the UNet and both text encoders."""
    return learned(tiny_sdxl, tmp_path_factory.mktemp("five"), text=True)


def load(folder) -> BaseModel:
    return load_base(find_base(str(folder)), "cpu")


@pytest.fixture(scope="module")
def report(tiny_sdxl, five):
    return bench_engine(load(tiny_sdxl), load(tiny_sdxl), five, steps=2, rounds=1, emit=silent)


def test_the_loop_of_diffusers_draws_the_same(report):
    assert 0 < report["their largest difference"] < 1e-4


def test_that_difference_would_tell(tiny_sdxl, five):
    """Of a loop in which all adapters are the first one."""
    base, other = load(tiny_sdxl), load(tiny_sdxl)
    wrong = [replace(one, folder=five[0].folder) for one in five]
    found = loops(base, SwitchedLoop(other, wrong), five, 2, 1, silent)
    assert found["their largest difference"] > 1e-3


def test_no_adapter_takes_a_weight_and_five_fit_beside_one(tiny_sdxl, tmp_path_factory):
    """Of rank one, since beside so small a base every adapter is large."""
    found = memory(load(tiny_sdxl), learned(tiny_sdxl, tmp_path_factory.mktemp("thin"), rank=1))
    assert found["weight-shaped tensors an adapter"] == 0
    assert 1 < found["peak over that of 1"] <= 1.15
    assert found["beyond the weights MB"]["5"] > found["beyond the weights MB"]["1"] > 0


def test_beside_a_base_random_adapters_take_their_own_size_each(tiny_sdxl):
    found = memory_beside(load(tiny_sdxl), 3, rank=2)
    assert found["weight-shaped tensors an adapter"] == 0
    assert found["each more, times its file"] == pytest.approx(1, abs=0.6)  # small files are half headers


def test_all_is_told(report):
    assert report["composed"] == 5
    assert report["cmlora over composite"]["FLOPs"] > 1  # two steps, in which the order is measured
    assert set(report["change of gate"]) == {"made and set, ms", "more in its first forward, ms", "set_adapters, ms"}
    assert {"composite over set_adapters", "5 gated over 1", "1 gated over the base"} <= set(report)


def test_one_adapter_acts_where_banks_extend_layers_as_on_cuda(tiny_sdxl, five, monkeypatch):
    answers: dict[str, torch.Tensor] = {}
    timed = engine_bench.interleaved

    def interleaved(calls, rounds, device, emit, ready):
        monkeypatch.setattr(type(base.unet), "forward", kept)
        for name, call in calls.items():
            ready[name]()
            call()
            answers[name] = seen[-1]
        return timed(calls, rounds, device, emit, ready)

    base, seen = load(tiny_sdxl), []
    usual = type(base.unet).forward

    def kept(self, *args, **options):
        seen.append((found := usual(self, *args, **options))[0])
        return found

    monkeypatch.setattr(engine_bench, "interleaved", interleaved)
    monkeypatch.setattr(engine_bench, "AdapterBank", partial(AdapterBank, extends=True))
    gates(base, five, 1, silent)
    assert not torch.equal(answers["one"], answers["base"])
    assert not torch.equal(answers["many"], answers["one"])


def test_the_device_has_done_all_before_and_after_what_is_timed(tiny_sdxl, five, monkeypatch):
    waits: list[torch.device] = []
    monkeypatch.setattr(engine_bench, "settle", waits.append)
    gates(load(tiny_sdxl), five, 2, silent)
    assert len(waits) == 2 * 2 * 2  # two rounds, the first forward and the next


@soaked
def test_concepts_with_words_of_their_own_are_measured_too(tiny_sdxl, tmp_path):
    concepts = [replace(one, trigger=f"{one.name}0") for one in learned(tiny_sdxl, tmp_path)]
    for one in concepts:
        rows = {"clip_l": torch.full((1, 16), 2.0), "clip_g": torch.full((1, 24), -2.0)}
        words = {f"lora_word.{one.trigger}.{tower}": row for tower, row in rows.items()}
        save_file(load_file(one.adapter_file) | words, one.adapter_file)
    base = load(tiny_sdxl)
    found = loops(base, SwitchedLoop(load(tiny_sdxl), concepts), concepts, 2, 1, silent)
    assert 0 < found["their largest difference"] < 1e-4
    assert gates(base, concepts, 1, silent)["5 gated over 1"]["value"] > 0
