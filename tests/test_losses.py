from pathlib import Path

import diffusers
import pytest
import torch

from studio.bases import find_base
from studio.errors import UsageError
from studio.models import BaseModel, load_base
from studio.trainers.losses import NoiseSchedule, noise_schedule, pointwise, prior_preserving_loss
from studio.trainers.recipe import Timesteps


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl: Path) -> BaseModel:
    return load_base(find_base(str(tiny_sdxl)), "cpu")


@pytest.fixture(scope="module")
def sd15(tiny_sd15: Path) -> BaseModel:
    return load_base(find_base(str(tiny_sd15)), "cpu")


def alpha_bars(zero_terminal: bool) -> torch.Tensor:
    """Scaled-linear betas in float64; for zero terminal SNR shifted and scaled as Lin et al. 2024, algorithm 1."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    roots = (1 - betas).cumprod(0).sqrt()
    if zero_terminal:
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots**2


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_noising_and_target_have_the_closed_form(name: str, request: pytest.FixtureRequest) -> None:
    schedule = noise_schedule(request.getfixturevalue(name))
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 5, 4, 6, 6, generator=generator)
    steps = torch.tensor([0, 1, 400, 998, 999])
    bar = alpha_bars(zero_terminal=name == "sdxl")[steps].reshape(-1, 1, 1, 1)
    noisy = bar.sqrt() * latents.double() + (1 - bar).sqrt() * noise.double()
    velocity = bar.sqrt() * noise.double() - (1 - bar).sqrt() * latents.double()
    torch.testing.assert_close(schedule.noisy(latents, noise, steps).double(), noisy, atol=2e-4, rtol=1e-4)
    expected = velocity if name == "sdxl" else noise.double()
    torch.testing.assert_close(schedule.target(latents, noise, steps).double(), expected, atol=2e-4, rtol=1e-4)


def test_at_zero_terminal_snr_the_last_target_is_the_picture(sdxl: BaseModel) -> None:
    latents, noise = torch.randn(2, 1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    last = torch.tensor([999])
    schedule = noise_schedule(sdxl)
    assert torch.equal(schedule.noisy(latents, noise, last), noise)
    assert torch.equal(schedule.target(latents, noise, last), -latents)


def test_predicting_noise_at_zero_snr_is_refused(sdxl: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = diffusers.EulerDiscreteScheduler.from_config(sdxl.scheduler.config, prediction_type="epsilon")
    monkeypatch.setattr(sdxl.pipe, "scheduler", broken)
    with pytest.raises(UsageError, match="pure noise"):
        noise_schedule(sdxl)


def test_prior_loss_is_two_means_not_one() -> None:
    prediction, target = torch.randn(2, 7, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    everywhere = torch.ones(7, 1, 3, 3)
    own = sum(((prediction[n] - target[n]) ** 2).mean().item() for n in range(2)) / 2
    prior = sum(((prediction[n] - target[n]) ** 2).mean().item() for n in range(2, 7)) / 5
    errors = pointwise(prediction, target, None)
    found = prior_preserving_loss(errors, everywhere, 2, 0.7).item()
    assert found == pytest.approx(own + 0.7 * prior, rel=1e-5)
    alone = prior_preserving_loss(errors[:2], everywhere[:2], 2, 0.7).item()
    assert alone == pytest.approx(own, rel=1e-5)


def test_what_is_not_learned_from_the_picture_counts_as_prior() -> None:
    prediction, target = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    own = torch.ones(2, 1, 3, 3)
    own[1, :, :, 1:] = 0
    squares = (prediction - target) ** 2
    expected = (squares[0].sum() + squares[1, :, :, 0].sum() + 3 * squares[1, :, :, 1:].sum()) / 72
    assert prior_preserving_loss(pointwise(prediction, target, None), own, 2, 3.0).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_weights_of_timesteps_have_the_closed_form(name: str, request: pytest.FixtureRequest) -> None:
    schedule, velocity = noise_schedule(request.getfixturevalue(name)), name == "sdxl"
    steps = torch.tensor([0, 100, 500, 900, *([999] if velocity else [])])
    for weighting, expected in {
        "none": lambda s: 1.0,
        "min-snr": lambda s: min(s, 5.0) / (s + 1) if velocity else min(s, 5.0) / s,
        "debiased": lambda s: 1 / (s + 1) if velocity else min(s, 1000.0) ** -0.5,
    }.items():
        found = schedule.weights(steps, weighting, 5.0)  # pyright: ignore
        for step, weight in zip(steps.tolist(), found.tolist(), strict=True):
            bar = float(alpha_bars(zero_terminal=velocity)[step])
            assert weight == pytest.approx(expected(bar / (1 - bar)), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_min_snr_weighs_each_sample_of_both_halves_by_its_own_timestep(sdxl: BaseModel, batch: int) -> None:
    """Weights of 2B timesteps on the loss of B samples: the trap of a well-known script."""
    schedule: NoiseSchedule = noise_schedule(sdxl)
    generator = torch.Generator().manual_seed(4)
    prediction, target = torch.randn(2, 2 * batch, 4, 3, 3, generator=generator)
    steps = torch.randint(0, 1000, (2 * batch,), generator=generator)
    weights = schedule.weights(steps, "min-snr", 5.0)
    errors = weights[:, None, None, None] * pointwise(prediction, target, None)
    found = prior_preserving_loss(errors, torch.ones(2 * batch, 1, 3, 3), batch, 0.5).item()
    own = prior = 0.0
    for n, step in enumerate(steps.tolist()):
        bar = float(alpha_bars(zero_terminal=True)[step])
        ratio = bar / (1 - bar)
        part = min(ratio, 5.0) / (ratio + 1) * float((prediction[n] - target[n]).double().square().mean()) / batch
        own, prior = (own + part, prior) if n < batch else (own, prior + part)
    assert found == pytest.approx(own + 0.5 * prior, rel=1e-3)


def test_huber_is_square_near_and_linear_far() -> None:
    near, far = pointwise(torch.tensor([1e-3, 100.0]), torch.zeros(2), 0.1).tolist()
    assert near == pytest.approx(1e-6, rel=1e-2)
    assert far == pytest.approx(2 * 0.1 * (100 - 0.1), rel=1e-4)


def test_timesteps_are_uniform_or_of_a_normal_logit(sdxl: BaseModel) -> None:
    schedule, count = noise_schedule(sdxl), 200_000
    places = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    expected: dict[Timesteps, torch.Tensor] = {"uniform": places, "logit-normal": torch.special.ndtr(places.logit())}
    for kind, below in expected.items():
        drawn = schedule.draw(count, kind, torch.Generator().manual_seed(3))
        assert 0 <= drawn.min() < drawn.max() < schedule.total
        share = (drawn[:, None] < places * schedule.total).double().mean(0)
        torch.testing.assert_close(share, below, atol=4e-3, rtol=0)
