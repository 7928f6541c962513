import dataclasses
import math

import pytest
import torch
from composing import SETTINGS, latents
from torch.utils.flop_counter import FlopCounterMode

from studio.errors import UsageError
from studio.events import silent
from studio.models import find_base, load_base
from studio.pipelines.baselines import Composite, Switch
from studio.pipelines.cmlora import CmLora
from studio.pipelines.compose import compose
from studio.pipelines.denoiser import Denoiser
from studio.pipelines.schedulers import make_scheduler
from studio.pipelines.spectrum import amplitudes, clean_latents, fineness, radial_profile

GIVEN = CmLora(early=("milo",), late=("rex",))


def waves(height: int, width: int, cycles: int) -> torch.Tensor:
    return torch.cos(2 * math.pi * cycles * torch.arange(width) / width).expand(height, width)


@pytest.mark.parametrize(
    ("steps", "parts"), [(50, (9, 9, 4)), (100, (19, 17, 7)), (200, (38, 34, 13)), (220, (41, 37, 14))]
)
def test_refreshes_are_spaced_as_the_paper_counts(steps, parts):
    found = [i for i in range(steps) if CmLora().refreshed(i, 0, steps)]
    first, last = int(0.375 * steps), int(0.875 * steps)
    assert found == [*range(0, first, 2), *range(first, last, 3), *range(last, steps, 2)]
    assert (
        sum(i < first for i in found),
        sum(first <= i < last for i in found),
        sum(i >= last for i in found),
    ) == parts


def test_refreshes_of_adapters_are_spread_over_the_steps():
    for adapter in range(5):
        found = [i for i in range(220) if CmLora().refreshed(i, adapter, 220)]
        assert found[0] == 0
        assert [i for i in found if 90 < i < 180] == [i for i in range(91, 180) if (i - 82) % 3 == adapter % 3]


@pytest.mark.parametrize(("k", "weights"), [(2, (1.2, 0.8)), (3, (5 / 3, 2 / 3)), (5, (2.6471, 0.5882))])
def test_the_first_shares_are_the_papers_weights_over_k(k, weights):
    leader = CmLora().share(0, k, 50)
    assert k * leader == pytest.approx(weights[0], abs=1e-4)
    assert k * (1 - leader) / (k - 1) == pytest.approx(weights[1], abs=1e-4)
    assert CmLora().share(49, k, 50) == pytest.approx(1 / k)
    shares = [CmLora().share(i, k, 50) for i in range(50)]
    assert shares == sorted(shares, reverse=True)
    assert CmLora(first_share=0.6, last_share=0.6).share(25, k, 50) == pytest.approx(0.6)


def test_one_adapter_leads_alone():
    assert all(CmLora().share(i, 1, 7) == 1.0 for i in range(7))


def test_rings_of_known_pictures():
    constant = radial_profile(amplitudes(torch.ones(64, 64)))
    assert constant[0] == 64 * 64
    assert constant[1:].abs().max() < 1e-3
    checkers = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1
    assert int(radial_profile(amplitudes(checkers)).argmax()) == 45
    assert int(radial_profile(amplitudes(waves(64, 64, 10))).argmax()) == 10


@pytest.mark.parametrize(("size", "rings"), [((64, 64), 46), ((128, 96), 81), ((128, 128), 91), ((512, 512), 363)])
def test_the_number_of_rings(size, rings):
    assert radial_profile(torch.zeros(size)).shape == (rings,)


def test_a_ring_is_the_mean_of_its_pixels():
    values = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(0))
    profile = radial_profile(values)
    for ring in range(profile.shape[1]):
        inside = [
            values[:, y, x] for y in range(7) for x in range(10) if int(math.hypot(y - 3, x - 5)) == ring
        ]  # fmt: skip
        torch.testing.assert_close(profile[:, ring], torch.stack(inside).mean(0))


def test_fineness_grows_with_detail_and_by_the_logarithm_of_the_scale():
    noise = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    assert fineness(noise, 0.2) > fineness(smooth, 0.2) + 1
    torch.testing.assert_close(fineness(3 * noise, 0.2), fineness(noise, 0.2) + math.log(3), atol=1e-4, rtol=0)
    for side in range(8, 40):
        assert fineness(torch.randn(1, 4, side, side + 3), 0.2).isfinite().all()


@pytest.mark.parametrize("name", ["default", "ddim", "dpm++2m"])
@pytest.mark.parametrize("kind", ["tiny_sdxl", "tiny_sd15"])
def test_clean_latents_undo_the_noise(request, name, kind):
    """Of v and of epsilon predictions, and of latents that the scheduler holds at its own scale."""
    tiny = load_base(find_base(str(request.getfixturevalue(kind))), "cpu")
    scheduler = make_scheduler(tiny, name)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[4]
    a = scheduler.alphas_cumprod[int(t)]
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = a.sqrt() * clean + (1 - a).sqrt() * noise
    held = seen / a.sqrt() if "Euler" in type(scheduler).__name__ else seen
    v = kind == "tiny_sdxl"
    prediction = a.sqrt() * noise - (1 - a).sqrt() * clean if v else noise
    torch.testing.assert_close(clean_latents(scheduler, held, prediction, t), clean, atol=1e-4, rtol=1e-4)


def test_who_leads_when(base, concepts):
    three = [*concepts, dataclasses.replace(concepts[0], name="bella")]
    settings = dataclasses.replace(SETTINGS, prompt="a <milo>, an <rex> and a <bella>", steps=40, count=1)
    composer = CmLora(early=("bella", "milo"), late=("rex",), period=4)
    run = latents(base, three, composer, dataclasses.replace(settings, steps=1), (1.0,) * 3)[1]
    run.scheduler.set_timesteps(40)
    found = []
    for run.step in range(40):
        found.append(composer.leader(run))
    turns = [2] * 4 + [0] * 4
    assert found == (turns * 3)[:22] + [1] * 18
    both = CmLora(early=(), late=("rex", "milo", "bella"), period=4)
    run.step = 0
    assert both.leader(run) == 1


def test_the_order_is_measured_in_the_first_steps(base, concepts):
    composer = CmLora(measured=2)
    _, run = latents(base, concepts, composer, dataclasses.replace(SETTINGS, steps=6))
    scores = run.state["fineness"]
    early, late = composer.phases(run)
    assert sorted(early + late) == [0, 1]
    assert all(scores[n] > 0 for n in early)
    assert all(scores[n] <= 0 for n in late)
    assert run.denoiser.texts.keys() == {"0", "1", "base"}


def test_an_adapter_that_does_nothing_adds_no_structure(base, concepts):
    _, run = latents(base, concepts, CmLora(measured=1), strengths=(0.0, 0.7))
    scores = run.state["fineness"]
    assert abs(float(scores[0])) < 1e-4
    assert abs(float(scores[1])) > 1e-3


def test_one_adapter_is_the_plain_loop_bit_for_bit(base, concepts):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    alone, _ = latents(base, concepts[:1], Switch(), settings, [0.7])
    found, run = latents(base, concepts[:1], CmLora(), settings, [0.7])
    assert torch.equal(found, alone)
    assert run.denoiser.cached_rows == 0


def test_equal_shares_without_a_cache_are_composite(base, concepts):
    composer = dataclasses.replace(GIVEN, edge_interval=1, middle_interval=1, first_share=0.5)
    found, run = latents(base, concepts, composer)
    truth, _ = latents(base, concepts, Composite())
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=0)
    assert run.denoiser.cached_rows == 0
    cached, _ = latents(base, concepts, dataclasses.replace(GIVEN, first_share=0.5))
    assert (cached - truth).abs().max() > 1e-2


def full_rows(steps: int) -> int:
    """Branches of two adapters that are computed in full, counted by hand for milo early and rex late."""
    total = 0
    for i in range(steps):
        leader = 0 if i < 0.55 * steps else 1
        interval, start = (2, 0) if i < int(0.375 * steps) else (3, int(0.375 * steps))
        if i >= int(0.875 * steps):
            interval, start = 2, int(0.875 * steps)
        for j in range(2):
            total += i == 0 or j == leader or (i - start - j) % interval == 0
    return total


def test_forwards_and_flops_are_those_of_the_schedule(base, concepts, monkeypatch):
    """At strength 0, where the adapters cost nothing."""
    monkeypatch.setattr(Denoiser, "keep_text", False)
    settings = dataclasses.replace(SETTINGS, steps=8, count=1)
    with FlopCounterMode(display=False) as counter:
        _, run = latents(base, concepts, GIVEN, settings, (0.0, 0.0))
    rows, cached = run.denoiser.rows // 2, run.denoiser.cached_rows // 2
    assert rows == full_rows(8)
    assert rows + cached == 2 * 8
    with FlopCounterMode(display=False) as composite:
        latents(base, concepts, Composite(), settings, (0.0, 0.0))
    x, t = torch.randn(1, 4, 8, 8), torch.tensor(500)
    denoiser, cost = run.denoiser, []
    for flag in (False, True):
        branch = dataclasses.replace(GIVEN.branches(run)[0], cached=flag)
        with FlopCounterMode(display=False) as one:
            denoiser.predict(x, t, [branch])
        cost.append(one.get_total_flops())
    saved = cached * (cost[0] - cost[1])
    assert composite.get_total_flops() - counter.get_total_flops() == saved
    assert cost[1] < 0.75 * cost[0]


def test_measuring_costs_one_more_branch_for_its_steps(base, concepts):
    _, run = latents(base, concepts, CmLora(measured=3), dataclasses.replace(SETTINGS, steps=8, count=1))
    assert run.denoiser.rows + run.denoiser.cached_rows == 2 * (2 * 8 + 3)


def test_shares_sum_to_one(base, concepts):
    _, run = latents(base, concepts, GIVEN)
    ones = torch.ones(2, 2, 1, 4, 8, 8)
    for run.step in range(4):
        assert float(GIVEN.shares(run, ones).sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("composer", "said"),
    [
        (CmLora(early=("milo",)), "The order milo is not"),
        (CmLora(early=("milo", "bella"), late=("rex",)), "Name each of milo, rex once"),
        (CmLora(first_share=0.3), "share of 0.3 is none for 2"),
        (CmLora(last_share=1.0), "share of 1 is none"),
        (CmLora(period=0), "less than one step"),
    ],
)
def test_settings_that_cannot_be_meant(base, concepts, composer, said):
    with pytest.raises(UsageError, match=said):
        compose(base, SETTINGS, [(one, 1.0) for one in concepts], composer, silent)
