import dataclasses
import math

import pytest
import torch
from composing import HALVES, SETTINGS, latents, most_kept
from fixtures_models import build_lora

from studio.concepts import Concept
from studio.errors import UsageError
from studio.events import silent
from studio.models import find_base, load_base
from studio.pipelines.baselines import Composite, Merge, Switch
from studio.pipelines.clora import Clora, claimed, contrast, shares
from studio.pipelines.compose import opened
from studio.pipelines.lora_composer import LoraComposer


def loss(maps, labels, temperature=0.5) -> float:
    rows = torch.tensor(maps, dtype=torch.float64).flatten(1)[None]
    return contrast(rows, torch.tensor(labels), temperature).item()


def ordinary(maps, labels, temperature) -> float:
    """NT-Xent by loops over pairs, in plain numbers."""
    unit = []
    for row in maps:
        row = [(x - min(row)) / (max(row) - min(row)) for x in row]
        norm = math.sqrt(sum(x * x for x in row))
        unit.append([x / norm for x in row])
    alike = [[math.exp(sum(x * y for x, y in zip(a, b, strict=True)) / temperature) for b in unit] for a in unit]
    found = []
    for a, own in enumerate(labels):
        rest = sum(alike[a][n] for n, other in enumerate(labels) if other != own)
        found += [
            -math.log(alike[a][p] / (alike[a][p] + rest)) for p, one in enumerate(labels) if p != a and one == own
        ]
    return sum(found) / len(found)


def parted(classes: int, each: int):
    """`each` equal maps of every class, those of different classes orthogonal."""
    return [[float(n == c) for n in range(classes)] for c in range(classes) for _ in range(each)]


@pytest.mark.parametrize(("classes", "each"), [(2, 2), (2, 3), (2, 4), (3, 2)])
def test_the_loss_of_told_apart_and_of_equal_maps(classes, each):
    labels = [c for c in range(classes) for _ in range(each)]
    apart = math.log(1 + (classes - 1) * each * math.exp(-2))
    assert loss(parted(classes, each), labels) == pytest.approx(apart, abs=1e-9)
    equal = math.log(1 + (classes - 1) * each)
    assert loss([[0.0, 1.0, 0.5]] * len(labels), labels) == pytest.approx(equal, abs=1e-9)


def test_the_loss_of_hand_checked_maps():
    assert loss([[1, 0], [0, 1], [1, 0], [0, 1]], [0, 0, 1, 1]) == pytest.approx(2.239545, abs=1e-6)
    toy = [[0.8, 0.6, 0, 0.1], [0.9, 0.5, 0.1, 0], [0.1, 0, 0.7, 0.9], [0, 0.2, 0.8, 0.6]]
    assert loss(toy, [0, 0, 1, 1]) == pytest.approx(0.336887, abs=1e-6)


def test_the_loss_of_random_maps_is_that_of_loops_and_knows_no_scale_or_order():
    rng = torch.Generator().manual_seed(0)
    maps, labels = torch.rand(7, 16, generator=rng, dtype=torch.float64), [0, 0, 1, 2, 1, 1, 0]
    found = loss(maps.tolist(), labels, 0.7)
    assert found == pytest.approx(ordinary(maps.tolist(), labels, 0.7), rel=1e-9)
    scaled = maps * torch.rand(7, 1, generator=rng, dtype=torch.float64) + 3
    assert loss(scaled.tolist(), labels, 0.7) == pytest.approx(found, rel=1e-9)
    order = [3, 6, 0, 2, 5, 1, 4]
    assert loss(maps[order].tolist(), [labels[n] for n in order], 0.7) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]])
def test_without_a_pair_or_a_contrast_there_is_neither_loss_nor_gradient(labels):
    maps = torch.rand(2, 3, 9, requires_grad=True)
    found = contrast(maps, torch.tensor(labels), 0.5)
    found.sum().backward()
    assert found.tolist() == [0, 0]
    assert maps.grad is not None
    assert not maps.grad.any()


def test_flat_maps_give_finite_gradients():
    maps = torch.ones(1, 4, 9, requires_grad=True)
    contrast(maps, torch.tensor([0, 0, 1, 1]), 0.5).sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_masks_of_the_example():
    found = claimed(torch.tensor([[[[0.9, 0.2], [0.3, 0.0]]]]), 0.3)
    assert found.tolist() == [[[1, 0], [1, 0]]]
    both = claimed(torch.tensor([[[[0.9, 0.2], [0.3, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]]), 0.3)
    assert both.tolist() == [[[1, 1], [1, 0]]]


@pytest.mark.parametrize("background", [True, False])
def test_shares_part_every_cell(background):
    claims = torch.tensor([[1.0, 0, 0, 1], [1, 1, 0, 0]]).reshape(2, 1, 2, 2)
    found = shares(claims, background).flatten(1)
    milo, rex, free = [0.5, 0, 0, 1], [0.5, 1, 0, 0], [0, 0, 1, 0]
    expected = [free, milo, rex] if background else [[0.5, 0, 1, 1], rex]
    assert found.tolist() == expected
    many = shares(torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(0)).round(), background)
    torch.testing.assert_close(many.sum(0), torch.ones(2, 6, 6))


def test_every_branch_spells_only_its_own_trigger(base, concepts):
    _, run = latents(base, concepts, Clora(), dataclasses.replace(SETTINGS, steps=1))
    tokenizer = base.tokenizers[0]
    texts = ["a cat and an dog on the grass", "a sks cat and an dog on the grass", "a cat and an ohwx dog on the grass"]
    said = [["cat", "dog"], ["sks", "cat", "dog"], ["cat", "ohwx", "dog"]]
    for branch, text, words in zip(run.state["branches"], texts, said, strict=True):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode([ids[n] for n in branch.columns]).split() == words
        got = base.encode([text]).embeds
        if not any(branch.weights):
            assert torch.equal(run.denoiser.texts[branch.text].embeds[1:], got)
    assert run.state["labels"] == [[0, 1], [0, 0, 1], [0, 1, 1]]
    assert [branch.weights for branch in run.state["branches"]] == [(0, 0), (1, 0), (0, 1)]


def test_only_class_words_where_asked(base, concepts):
    _, run = latents(base, concepts, Clora(class_only=True), dataclasses.replace(SETTINGS, steps=1))
    assert run.state["labels"] == [[0, 1]] * 3
    for branch, text in zip(run.state["branches"], ["a cat and an dog", "a sks cat and an dog"], strict=False):
        ids = base.tokenizers[0](text).input_ids
        assert base.tokenizers[0].decode([ids[n] for n in branch.columns]).split() == ["cat", "dog"]


def test_forwards_are_those_of_the_branches_and_of_the_refinement(base, concepts):
    _, run = latents(base, concepts, Clora(repeated=(1,), repeats=3))
    asked = run.denoiser
    assert (asked.forwards, asked.rows) == (SETTINGS.steps, 3 * SETTINGS.steps * 2 * SETTINGS.count)
    assert (asked.looks, asked.looked) == ((1 + 3) * SETTINGS.count, (1 + 3) * 3 * SETTINGS.count)


def test_a_small_step_lowers_the_loss_by_its_gradient_squared(base, concepts):
    composer = Clora()
    _, run = latents(base, concepts, composer, dataclasses.replace(SETTINGS, steps=1))
    noise, time_of = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor(500)
    gradient = composer._gradient(run, noise, time_of)
    step = 0.01 / float(gradient.norm())

    def value(z):
        return composer.loss(run.denoiser.look(z, time_of, run.state["branches"]), run.state["labels"]).double().sum()

    with torch.no_grad():
        fall = value(noise - step * gradient) - value(noise + step * gradient)
    assert float(fall) == pytest.approx(-2 * step * float(gradient.square().sum()), rel=0.05)
    assert not any(one.requires_grad or one.grad is not None for one in base.unet.parameters())


def test_pictures_of_a_batch_do_not_touch_each_other(base, concepts):
    both, _ = latents(base, concepts, Clora())
    second, _ = latents(base, concepts, Clora(), dataclasses.replace(SETTINGS, seed=8, count=1))
    torch.testing.assert_close(both[1:], second, atol=1e-3, rtol=0)


@pytest.mark.parametrize("composer", [Clora(), LoraComposer()], ids=lambda one: type(one).__name__)
def test_many_pictures_are_refined_in_the_memory_of_one(base, concepts, composer):
    with opened(base, SETTINGS, [(one, 1.0) for one in concepts], composer, silent, HALVES) as run, torch.no_grad():
        first = run.scheduler.timesteps[0]
        one, many = (most_kept(lambda n=n: composer.refine(run, torch.randn(n, 4, 8, 8), first)) for n in (1, 4))
    assert 0 < many == one


def test_the_step_moves_the_latents_as_the_sampler_scales_them(base, concepts):
    composer = Clora(step_size=1.0)
    _, run = latents(base, concepts, composer, dataclasses.replace(SETTINGS, steps=2))
    run.step = 0
    run.scheduler.set_timesteps(2)
    first = run.scheduler.timesteps[0]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * run.scheduler.init_noise_sigma
    scaled = run.scheduler.scale_model_input(noise, first)
    moved = run.scheduler.scale_model_input(composer.refine(run, noise, first), first)
    gradient = composer._gradient(run, scaled, first)
    torch.testing.assert_close(moved, scaled - gradient * 64 / 4096, atol=1e-6, rtol=0)


def test_no_step_is_longer_than_allowed(base, concepts):
    composer = Clora(step_size=1e6, longest=0.05)
    _, run = latents(base, concepts, composer, dataclasses.replace(SETTINGS, steps=2))
    run.step = 0
    run.scheduler.set_timesteps(2)
    first = run.scheduler.timesteps[0]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * run.scheduler.init_noise_sigma
    moved = composer.refine(run, noise, first) - noise
    lengths = run.scheduler.scale_model_input(moved, first).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(lengths, torch.full((2,), 0.05), atol=1e-4, rtol=0)


def test_masks_and_moves_make_a_difference(base, concepts):
    plain, _ = latents(base, concepts, Clora(step_size=0))
    moved, _ = latents(base, concepts, Clora(step_size=2000))
    averaged, _ = latents(base, concepts, Clora(step_size=0, masked_from=1.0))
    assert all(one.isfinite().all() for one in (plain, moved, averaged))
    assert float((plain - moved).abs().max()) > 0.01
    assert float((plain - averaged).abs().max()) > 0.01


def without_triggers(concepts) -> list[Concept]:
    """Whose phrase is the class word in every branch, but for a space that tokenizers skip."""
    return [dataclasses.replace(one, trigger="") for one in concepts]


def test_without_masks_base_and_moves_it_is_composite(base, concepts):
    plain = without_triggers(concepts)
    found, _ = latents(base, plain, Clora(step_size=0, masked_from=1.0, background=False))
    truth, _ = latents(base, plain, Composite())
    assert torch.equal(found, truth)


def test_one_adapter_without_the_base_is_itself_bit_for_bit(base, concepts):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    found, run = latents(base, concepts[:1], Clora(background=False), settings, [0.7])
    truth, _ = latents(base, concepts[:1], Switch(), settings, [0.7])
    assert run.denoiser.looked == 0
    assert torch.equal(found, truth)


def test_one_adapter_beside_the_base(base, concepts):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    found, _ = latents(base, concepts[:1], Clora(), settings, [0.7])
    assert found.isfinite().all()


def test_strength_zero_is_the_base(base, concepts):
    plain = without_triggers(concepts)
    found, _ = latents(base, plain, Clora(step_size=0), strengths=(0.0, 0.0))
    truth, _ = latents(base, plain, Merge(), strengths=(0.0, 0.0))
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=0)


def test_the_order_of_concepts_is_rounding(base, concepts):
    one, _ = latents(base, concepts, Clora())
    other, _ = latents(base, concepts[::-1], Clora())
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_without_guidance(base, concepts):
    found, run = latents(base, concepts, Clora(), dataclasses.replace(SETTINGS, guidance=1.0))
    assert found.isfinite().all()
    assert run.denoiser.rows == 3 * SETTINGS.steps * SETTINGS.count


def test_small_batches_change_nothing_but_rounding(base, concepts, monkeypatch):
    whole, _ = latents(base, concepts, Clora())
    monkeypatch.setattr("studio.pipelines.denoiser.CPU_ROWS", 4)
    parts, run = latents(base, concepts, Clora())
    assert run.denoiser.looks == 2 * 2
    torch.testing.assert_close(parts, whole, atol=1e-3, rtol=0)


def test_odd_sizes(base, concepts):
    found, _ = latents(base, concepts, Clora(), dataclasses.replace(SETTINGS, width=48, height=32, count=1))
    assert found.shape == (1, 4, 8, 12)
    assert found.isfinite().all()


def test_the_other_family(tiny_sd15, concepts, tmp_path):
    base, own = load_base(find_base(str(tiny_sd15)), "cpu"), []
    for seed, concept in enumerate(concepts):
        (tmp_path / concept.name).mkdir()
        build_lora(tiny_sd15, tmp_path / concept.name / "adapter.safetensors", seed=seed)
        own.append(dataclasses.replace(concept, family="sd15", folder=tmp_path / concept.name))
    found, run = latents(base, own, Clora())
    still, _ = latents(base, own, Clora(step_size=0))
    assert run.denoiser.probe is not None
    assert found.isfinite().all()
    assert not torch.equal(found, still)


def test_numbers_that_select_nothing(base, concepts):
    with pytest.raises(UsageError, match="select nothing"):
        latents(base, concepts, Clora(threshold=1.0))
