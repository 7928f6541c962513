import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composing import SETTINGS, latents
from test_generate import difference

from studio.bank import AdapterBank
from studio.errors import StudioError, UsageError
from studio.events import Notice, silent
from studio.models import wrap_pipe
from studio.pipelines.baselines import Composite, Merge, Recentred, Switch
from studio.pipelines.compose import _guided, compose, denoise, opened
from studio.pipelines.denoiser import usual_rows
from studio.pipelines.generate import generate
from studio.pipelines.random_bases import random_lora, random_pipe
from studio.pipelines.settings import GenerateSettings
from studio.regions import Box, Layout

ALL = [Merge(), Switch(2), Composite(), Recentred()]


def test_merging_is_what_generate_draws(base, concepts):
    pairs = [(one, s) for one, s in zip(concepts, (0.8, 0.5), strict=True)]
    ours, theirs = compose(base, SETTINGS, pairs, Merge(), silent), generate(base, SETTINGS, pairs, silent)
    assert all(difference(*two) <= 1 for two in zip(ours, theirs, strict=True))
    assert difference(ours[0], generate(base, SETTINGS, [(c, 0.0) for c, _ in pairs], silent)[0]) > 10


def test_a_base_distilled_with_its_guidance_is_told_it_as_diffusers_does(concepts):
    pipe, said = random_pipe({"time_cond_proj_dim": 32}), []
    pipe.set_progress_bar_config(disable=True)
    base, milo = wrap_pipe(pipe), concepts[0]

    def bank_of(base, chosen):
        return AdapterBank(base, [random_lora(base, 2, n) for n in range(len(chosen))])

    def drawn(guidance):
        settings = GenerateSettings("a <milo>", "night", width=96, height=96, steps=2, guidance=guidance, seed=7)
        theirs = generate(base, dataclasses.replace(settings, prompt=f"a {milo.phrase}"), [], silent)[0]
        return compose(base, settings, [(milo, 0.0)], Merge(), said.append, bank_of=bank_of)[0], theirs

    (low, truth), (high, other) = drawn(1.0), drawn(4.0)
    assert max(difference(low, truth), difference(high, other)) <= 1 < difference(truth, other)
    assert sum("takes guidance as an input" in one.message for one in said if isinstance(one, Notice)) == 2


@pytest.mark.parametrize("composer", ALL[1:], ids=lambda one: type(one).__name__)
def test_one_adapter_through_any_method_is_itself(base, concepts, composer):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    alone, _ = latents(base, concepts[:1], Switch(), settings, [0.7])
    merged, _ = latents(base, concepts[:1], Merge(), settings, [0.7])
    found, _ = latents(base, concepts[:1], composer, settings, [0.7])
    if isinstance(composer, Recentred):  # which adds and takes away the base
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)
    else:
        assert torch.equal(found, alone)
    torch.testing.assert_close(found, merged, atol=1e-3, rtol=0)


@pytest.mark.parametrize("composer", ALL, ids=lambda one: type(one).__name__)
def test_strength_zero_is_the_base_bit_for_bit(base, concepts, composer):
    if isinstance(composer, Recentred):
        pytest.skip("sums the base with weights that round")
    found, _ = latents(base, concepts, composer, strengths=(0.0, 0.0))
    truth, _ = latents(base, concepts, Merge(), strengths=(0.0, 0.0))
    assert torch.equal(found, truth)


def test_thirds_of_one_prediction_are_that_prediction_in_half_precision():
    same = torch.randn(1, 1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    run: Any = SimpleNamespace(step=0, guidance=1.0, size=(8, 8))
    assert torch.equal(_guided(run, Composite(), same.expand(3, -1, -1, -1, -1, -1)), same[0, 0])


def test_switch_takes_turns_as_the_paper_counts(base, concepts):
    _, run = latents(base, concepts, Switch(), dataclasses.replace(SETTINGS, steps=6))
    turns = []
    for run.step in range(12):
        (branch,) = Switch(5).branches(run)
        turns.append([n for n, w in enumerate(branch.weights) if w])
    assert turns == [[0]] * 5 + [[1]] * 5 + [[0]] * 2


@pytest.mark.parametrize(("composer", "branches"), [(Merge(), 1), (Switch(2), 1), (Composite(), 2), (Recentred(), 3)])
def test_every_branch_of_a_step_is_one_forward(base, concepts, composer, branches):
    _, run = latents(base, concepts, composer)
    assert run.denoiser.forwards == SETTINGS.steps
    assert run.denoiser.rows == SETTINGS.steps * branches * 2 * SETTINGS.count


def test_small_batches_change_nothing_but_rounding(base, concepts):
    whole, _ = latents(base, concepts, Composite())
    with opened(base, SETTINGS, [(one, 1.0) for one in concepts], Composite(), silent) as run, torch.no_grad():
        run.denoiser.max_rows = 3
        parts = denoise(run, Composite(), SETTINGS, silent)
    assert run.denoiser.forwards == SETTINGS.steps * 3
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)


def test_a_forward_on_a_gpu_takes_as_many_rows_as_their_size_allows():
    sides = {64: 64, 128: 16, 1024: 1}  # cells of the latents: rows
    for side, rows in sides.items():
        latents = torch.empty(2, 4, side, side, device="meta")
        assert usual_rows(torch.device("cuda"), latents) == rows
        assert usual_rows(torch.device("cpu"), latents) == 16


def test_copies_of_one_adapter_composite_to_it_and_recentring_adds_them(base, concepts):
    twice = [concepts[0], dataclasses.replace(concepts[0], name="rex")]
    alone, _ = latents(base, twice, Merge(), strengths=(1.0, 0.0))
    found, _ = latents(base, twice, Composite())
    torch.testing.assert_close(found, alone, atol=1e-3, rtol=0)


def test_without_guidance_there_is_one_condition(base, concepts):
    settings = dataclasses.replace(SETTINGS, guidance=1.0)
    pairs = [(one, 1.0) for one in concepts]
    ours, theirs = compose(base, settings, pairs, Merge(), silent), generate(base, settings, pairs, silent)
    assert difference(ours[0], theirs[0]) <= 1
    _, run = latents(base, concepts, Composite(), settings)
    assert run.denoiser.rows == settings.steps * 2 * settings.count


def test_odd_sizes_and_many_seeds(base, concepts):
    settings = dataclasses.replace(SETTINGS, width=48, height=32, count=3)
    pictures = compose(base, settings, [(one, 1.0) for one in concepts], Composite(), silent)
    alone = compose(
        base, dataclasses.replace(settings, seed=8, count=1), [(c, 1.0) for c in concepts], Composite(), silent
    )
    assert pictures[1].size == (48, 32)
    assert np.isfinite(np.asarray(pictures[1])).all()
    assert difference(pictures[1], alone[0]) <= 1


@pytest.mark.parametrize(
    ("prompt", "names", "layout", "said"),
    [
        ("a <milo>", "mr", None, "does not name <rex>"),
        ("a <milo> and a <bella>", "m", None, "names <bella>"),
        ("a cat", "", None, "no concept to compose"),
        ("a <milo>", "m", Layout({"bella": Box(0, 0, 1, 1)}), "a box for 'bella'"),
    ],
)
def test_requests_that_cannot_be_meant(base, concepts, prompt, names, layout, said):
    chosen = [(one, 1.0) for one in concepts if one.name[0] in names]
    with pytest.raises(UsageError, match=said):
        compose(base, GenerateSettings(prompt, steps=1), chosen, Merge(), silent, layout)


def test_nine_concepts_are_too_many(base, concepts):
    many = [(dataclasses.replace(concepts[0], name=f"c{n}"), 1.0) for n in range(9)]
    with pytest.raises(UsageError, match="9 concepts are too many"):
        compose(base, GenerateSettings(" ".join(f"<c{n}>" for n in range(9))), many, Merge(), silent)


def test_switching_needs_a_turn_for_everyone(base, concepts):
    with pytest.raises(UsageError, match="4 steps leave no turn for <rex>"):
        latents(base, concepts, Switch(5))
    latents(base, concepts, Switch(3))


def test_without_guidance_a_negative_prompt_is_said_to_do_nothing(base, concepts):
    said = []
    settings = dataclasses.replace(SETTINGS, guidance=1.0, steps=1)
    compose(base, settings, [(one, 1.0) for one in concepts], Merge(), said.append)
    assert any("no effect" in event.message for event in said if isinstance(event, Notice))


def test_overlapping_boxes_and_unread_words_are_said(base, concepts):
    said, layout = [], Layout({"rex": Box(0, 0, 0.6, 1), "milo": Box(0.5, 0, 1, 1)})
    settings = GenerateSettings("a <milo> and an <rex>" + " on the grass" * 9, steps=1)
    compose(base, settings, [(one, 1.0) for one in concepts], Composite(), said.append, layout)
    notices = [event.message for event in said if isinstance(event, Notice)]
    assert any("<rex> and <milo> overlap; there <milo>" in one for one in notices)
    assert any("the rest has no effect: 'grass" in one or "on the grass'" in one for one in notices)


@pytest.mark.parametrize("shares", [torch.ones(1), torch.ones(2), torch.ones(2, 1, 3, 3) / 2, torch.ones(2, 1) / 2])
def test_a_method_whose_shares_are_wrong_is_named(base, concepts, shares):
    class Forgetful(Composite):
        def shares(self, run, predictions):
            return shares

    with pytest.raises(StudioError, match=r"Forgetful\.shares"):
        compose(base, SETTINGS, [(one, 1.0) for one in concepts], Forgetful(), silent)


def test_the_share_done_stays_below_one_for_samplers_of_two_stages(base, concepts):
    _, run = latents(base, concepts, Composite(), dataclasses.replace(SETTINGS, scheduler="heun"))
    assert run.step == 2 * SETTINGS.steps - 2
    assert 0.8 < run.share < 1
