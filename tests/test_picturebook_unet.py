"""The UNet's training: the schedule, the noising, and stages that go on where they were cut off."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from studio.trainers.picturebook_unet import (
    Averaged,
    Stage,
    build_scheduler,
    build_unet,
    draw_timesteps,
    learning_rate,
    signal_levels,
)  # fmt: skip


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
    assert (int(drawn.min()), int(drawn.max())) >= (0, 990)
    assert ((drawn > 250) & (drawn < 750)).float().mean() == pytest.approx(0.75 * 0.728 + 0.25 * 0.5, abs=0.02)


def test_an_average_of_a_constant_is_that_constant():
    model = torch.nn.Linear(2, 2)
    average = Averaged(model)
    for _ in range(5):
        average.update(model)
    assert torch.equal(average.model.weight, model.weight)
