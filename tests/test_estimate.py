import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from soaking import soaked
from training_helpers import tiny_recipe

from studio.bases import find_base
from studio.events import Event, Notice, silent
from studio.home import Home
from studio.models import load_base
from studio.tensor_memory import TensorMemory
from studio.trainers.captions import pictures_of
from studio.trainers.dreambooth import _prepare, train_concept
from studio.trainers.estimate import need_of
from studio.trainers.memory import check_memory
from studio.trainers.tuners import count_of

KINDS: list[dict[str, Any]] = [
    {},
    {"gradient_checkpointing": True},
    {"rank": 8, "targets": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1", "conv2")},
    {"batch_size": 4, "prior_preservation": False},
    {"dora": True},
    {"new_word": True, "trigger": "milo0"},
    {"text_rank": 2},
    {"method": "krona", "factors": (2, 2)},
    {"method": "lokr"},
    {"method": "oft", "block_size": 4},
    {"init": "pissa"},
    {"optimizer": "adafactor"},
]


@pytest.fixture
def unestimated() -> None:
    """Here it is counted."""


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        pytest.param(base, kind, marks=() if n % 2 == place or not n else soaked)  # in turn, and both of the first
        for place, base in enumerate(("tiny_sdxl", "tiny_sd15"))
        for n, kind in enumerate(KINDS)
    ],
)
def test_a_true_step_takes_what_was_estimated(
    base: str, kind: dict[str, Any], home: Home, request: pytest.FixtureRequest
) -> None:
    model = load_base(find_base(str(request.getfixturevalue(base))), "cpu")
    recipe = tiny_recipe(request.getfixturevalue(base), home, {"resolution": 64, "batch_size": 2} | kind)
    training, _ = _prepare(model, recipe, pictures_of(recipe), home, silent, true_sizes=True)
    with TensorMemory() as memory:
        training.take_step()
        training.take_step()
    need = need_of(training)
    estimate = need.total - need.weights - 4 * count_of(training.parameters)  # the weights were there before
    assert estimate == pytest.approx(memory.peak, rel=0.15)


def test_a_device_with_too_little_free_is_told_what_helps(
    tiny_sd15: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_sd15, home)
    model = load_base(find_base(str(tiny_sd15)), "cpu")
    training, _ = _prepare(model, recipe, pictures_of(recipe), home, silent, true_sizes=True)
    told: list[Event] = []
    check_memory(training, told.append)
    assert len(told) == 1
    gpu = dataclasses.replace(model, device=torch.device("cuda"))
    monkeypatch.setattr(training, "base", gpu)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    for free, count in ((10**9, 2), (10**4, 4)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 0))
        check_memory(training, told.append)
        assert len(told) == count
    assert isinstance(told[-1], Notice)
    assert "gradient_checkpointing" in told[-1].message


def test_offloading_changes_no_estimate_and_is_not_copied(tiny_sd15: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sd15, home)
    model = load_base(find_base(str(tiny_sd15)), "cpu")
    training, _ = _prepare(model, recipe, pictures_of(recipe), home, silent, true_sizes=True)
    plain = need_of(training)
    _, first = cpu_offload_with_hook(model.text_encoders[0], "cpu")
    cpu_offload_with_hook(model.unet, "cpu", prev_module_hook=first)
    assert need_of(training) == plain
    assert hasattr(model.unet, "_hf_hook")


@pytest.mark.gpu
def test_a_gpu_trains_with_the_rest_put_away(tiny_sdxl: Path, home: Home, cuda: str) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"offload": True, "sample_every": 2, "save_every": 2})
    concept = train_concept(recipe, home, device=cuda)
    assert concept.adapter_file.is_file()
