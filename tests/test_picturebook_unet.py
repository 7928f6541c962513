"""The UNet's training: the schedule, the noising, and stages that go on where they were cut off."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from studio.trainers import picturebook_unet
from studio.trainers.picturebook_text import build_towers, train_tokenizer
from studio.trainers.picturebook_unet import (
    Averaged,
    Stage,
    TextSide,
    build_scheduler,
    build_unet,
    draw_pool,
    draw_timesteps,
    learning_rate,
    signal_levels,
    train_unet,
)  # fmt: skip
from studio.trainers.picturebook_vae import build_vae
from studio.trainers.processes import ALONE


def test_signal_levels_are_those_of_the_scheduler():
    scheduler: EulerDiscreteScheduler = build_scheduler()
    assert torch.allclose(signal_levels(), scheduler.alphas_cumprod, atol=1e-6)
    assert signal_levels()[-1] == 0


def test_the_unet_has_sdxls_blocks():
    unet = build_unet()
    attentions = unet.get_submodule("up_blocks.0.attentions")
    assert len(list(attentions.children())) == 3
    assert not hasattr(unet.down_blocks[0], "attentions")
    assert sum(p.numel() for p in unet.parameters()) * 2 < 16 * 2**20


def test_the_learning_rate_warms_up_and_ends_at_its_last_value():
    stage = Stage(size=64, samples=10_000, batch=10, peak=1.0, last=0.1, warmup=100)
    assert learning_rate(stage, 0) == pytest.approx(0.01)
    assert learning_rate(stage, 5_000) == pytest.approx(0.55)
    assert learning_rate(stage, 10_000) == pytest.approx(0.1)


def test_timesteps_cover_the_schedule_and_favour_its_middle():
    drawn = draw_timesteps(20_000, torch.Generator().manual_seed(0))
    assert 0 <= int(drawn.min()) <= 10
    assert 990 <= int(drawn.max()) <= 999
    assert ((drawn > 250) & (drawn < 750)).float().mean() == pytest.approx(0.75 * 0.728 + 0.25 * 0.5, abs=0.02)


def test_a_share_of_the_timesteps_is_nearly_clear():
    drawn = draw_timesteps(20_000, torch.Generator().manual_seed(0), clear=0.4)
    usual = 0.75 * NormalDist().cdf(math.log(0.35 / 0.65)) + 0.25 * 0.35
    assert (drawn < 350).float().mean() == pytest.approx(0.4 + 0.6 * usual, abs=0.02)


def test_a_pool_of_three_lies_on_a_wider_canvas():
    scenes, latents = draw_pool(build_vae(torch.rand(4, 3, 32, 32)).eval(), 32, 2, "test", "cpu", three=True)
    assert latents.shape == (2, 4, 8, 12)
    assert all(len(scene.subjects) == 3 and not any(s.held_out for s in scene.subjects) for scene in scenes)


def test_an_average_of_a_constant_is_that_constant():
    model = torch.nn.Linear(2, 2)
    average = Averaged(model)
    for _ in range(5):
        average.update(model)
    assert torch.equal(average.model.weight, model.weight)


def restore_with(
    restore: Callable[..., int], begun: list[dict[str, Any]], file: Path, parts: dict[str, Any], device: str
) -> int:
    """Restore `parts`, and keep in `begun` what they then are."""
    done = restore(file, parts, device)
    begun.append(deepcopy({name: part.state_dict() for name, part in parts.items()}))
    return done


@pytest.mark.slow
def test_a_stage_goes_on_from_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(0)
    first, second = build_towers(tokenizer)
    text = TextSide(tokenizer, first.eval(), second.eval())
    vae = build_vae(torch.rand(4, 3, 32, 32)).eval()

    def train(samples: int) -> Any:
        stage = Stage(size=32, samples=samples, batch=2, peak=1e-3, last=1e-4, threes=2)
        return train_unet(stage, build_unet(), vae, text, tmp_path, 8, lambda unet, done: seen.append(done), ALONE)

    seen: list[int] = []
    begun: list[dict[str, Any]] = []
    once = train(4)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again = train(4)  # nothing is left to do: the average comes back as it was saved
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))
    with monkeypatch.context() as patched:
        patched.setattr(picturebook_unet, "_restore", partial(restore_with, picturebook_unet._restore, begun))
        further = train(6)
    assert seen == [4, 6]
    assert saved.keys() == {"unet", "average", "muon", "adamw", "done"}
    for name, part in begun[0].items():  # the UNet's raw weights and both optimizers' means, not the average alone
        torch.testing.assert_close(part, saved[name], rtol=0, atol=0)
    assert not all(torch.equal(a, b) for a, b in zip(once.parameters(), further.parameters(), strict=True))
