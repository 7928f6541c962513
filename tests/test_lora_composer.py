import dataclasses
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from composing import HALVES, SETTINGS, latents
from fixtures_models import build_lora

from studio.adapters import Adapter, load_concept
from studio.bank import AdapterBank
from studio.errors import UsageError
from studio.events import silent
from studio.models import find_base, load_base
from studio.pipelines.baselines import Merge, Switch
from studio.pipelines.box_losses import Place
from studio.pipelines.compose import compose, denoise, opened
from studio.pipelines.lora_composer import INJECTED, LoraComposer, beside, own_text, transplanted
from studio.pipelines.probe import AttentionProbe
from studio.regions import Box, Layout

SPREAD = Layout({"milo": Box(0, 0, 0.75, 0.5), "rex": Box(0.5, 0.25, 1, 0.75)})  # they overlap, and leave ground free
WHOLE = Layout({"milo": Box(0, 0, 1, 1)})
ONE = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
STILL = LoraComposer(whole_from=0.2, isolated=0.5, step_size=0)
TIME = torch.tensor(500)


def noise(count=1, seed=3):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def without_triggers(concepts):
    """Whose phrase is the class word, but for a space that tokenizers skip."""
    return [dataclasses.replace(one, trigger="") for one in concepts]


def paired(concepts):
    return [(one, 1.0) for one in concepts]


def owner(row: int, column: int) -> int:
    """Of a cell of the 4 x 4 grid in SPREAD: 0 nobody, 1 milo, 2 rex."""
    if 1 <= row < 3 and column >= 2:
        return 2
    return 1 if row < 2 and column < 3 else 0


def test_every_cell_reads_the_text_of_the_box_in_front():
    masks = SPREAD.masks(["milo", "rex"], 4, 4)
    found = beside(masks)
    for row in range(4):
        for column in range(4):
            assert found[:, row, column].nonzero().flatten().tolist() == [owner(row, column)]
    words = own_text(2, 5, 2)
    assert words.shape == (2, 2, 15)
    assert words[0].nonzero().tolist() == [[0, n] for n in range(5, 10)] + [[1, n] for n in range(10, 15)]
    assert torch.equal(words[0], words[1])


def test_boxes_read_by_their_own_adapter_as_separate_attentions_do(base, concepts):
    """The first layer that reads the text against softmaxes written out, one for each box."""
    layer = next(name for name, _ in base.unet.named_modules() if name.endswith("attn2"))
    module, seen = base.unet.get_submodule(layer), []
    composer = LoraComposer(whole_from=1.0, step_size=0)
    with opened(base, SETTINGS, paired(concepts), composer, silent, SPREAD) as run, torch.no_grad():
        handle = module.register_forward_hook(
            lambda _, args, kwargs, out: seen.append((args[0], out)), with_kwargs=True
        )
        run.denoiser.predict(noise(), TIME, composer.branches(run))
        handle.remove()
        texts = [run.denoiser.texts[key].embeds for key in ("base", "0", "1")]
    (pixels, found), adapters = seen[0], [load_concept(one) for one in concepts]

    def weight(part: str, own: int) -> torch.Tensor:
        plain = module.get_submodule(part).weight.detach()
        return plain if own == 0 else plain + adapters[own - 1].factors[f"unet.{layer}.{part}"].delta(plain)

    for condition in (0, 1):
        query = F.linear(pixels[condition], module.to_q.weight)
        for n in range(16):
            own = owner(*divmod(n, 4))
            key, value = (F.linear(texts[own][condition], weight(part, own)) for part in ("to_k", "to_v"))
            heads = [one.unflatten(-1, (module.heads, -1)) for one in (query[n], key, value)]
            scores = torch.einsum("hd,nhd->hn", heads[0], heads[1]) * heads[0].shape[-1] ** -0.5
            read = torch.einsum("hn,nhd->hd", scores.softmax(1), heads[2]).flatten()
            truth = F.linear(read, weight("to_out.0", own), module.to_out[0].bias)
            torch.testing.assert_close(found[condition, n], truth, atol=2e-5, rtol=1e-5)


def test_boxes_do_not_see_each_other(base, concepts):
    layers = [name for name, _ in base.unet.named_modules() if name.endswith("attn1")]
    with opened(base, SETTINGS, paired(concepts), STILL, silent, SPREAD) as run, torch.no_grad():
        probe = AttentionProbe(base.unet, layers, run.size)
        (isolated,) = run.denoiser.look(noise(), TIME, STILL.branches(run), probe)
        run.step = 3
        (late,) = run.denoiser.look(noise(), TIME, LoraComposer(isolated=0.5).branches(run), probe)
    milo, rex = ([n for n in range(16) if owner(*divmod(n, 4)) == own] for own in (1, 2))
    for name in layers:
        looks = isolated.layers[name][0]
        torch.testing.assert_close(looks.sum(1), torch.ones(len(looks)))
        if len(looks) == 16:
            assert not looks[milo][:, rex].any()
            assert not looks[rex][:, milo].any()
            assert late.layers[name][0][milo][:, rex].all()


def test_only_its_own_words_in_its_own_text_are_read_of_a_concept(base, concepts):
    composer = LoraComposer(step_size=0, texts={"rex": "the grass and an <rex> by a <milo>"})
    with opened(base, SETTINGS, paired(concepts), composer, silent, HALVES) as run:
        width, tokenizer = base.tokenizers[0].model_max_length, base.tokenizers[0]
        (branch,) = composer.branches(run)
        own = [[column % width for column in branch.columns if column // width == n] for n in range(3)]
        texts = ["a sks cat and an dog on the grass", "the grass and an ohwx dog by a cat"]
        said = [[tokenizer(text).input_ids[n] for n in own[i + 1]] for i, text in enumerate(texts)]
        assert own[0] == []
        assert [tokenizer.decode(ids).split() for ids in said] == [["sks", "cat"], ["ohwx", "dog"]]
        boxes, truth = run.denoiser.texts["boxes"], base.encode(["a cat and an dog on the grass"])
        assert torch.equal(boxes.embeds[1:, :width], truth.embeds)
        assert boxes.pooled is not None
        assert torch.equal(boxes.pooled[1:], truth.pooled)


def test_steps_shrink_as_the_authors_do():
    found = LoraComposer().step_sizes(50)
    assert found[[0, 25, 49]].tolist() == pytest.approx([20, 17.261494, 14.142136], abs=1e-6)


@pytest.mark.parametrize(
    ("losses", "updates"),
    [
        (lambda step: 50.0 - step, 26),
        (lambda step: 50.0 + step, 6),
        (lambda step: abs(step - 9.0), 11),
        (lambda step: math.nan, 26),
        (lambda step: math.nan if step == 7 else abs(step - 9.0), 11),
    ],
)
def test_pictures_are_refined_until_their_loss_grows(base, concepts, losses, updates):
    composer, asked = LoraComposer(), []

    def slope(run, scaled, timestep):
        asked.append((run.step, len(scaled)))
        falling = [losses(run.step), -float(run.step)]  # of the second picture always
        return torch.tensor(falling[-len(scaled) :]), torch.zeros_like(scaled)

    composer._slope = slope
    settings = dataclasses.replace(SETTINGS, steps=50)
    with opened(base, settings, paired(concepts), composer, silent, HALVES) as run:
        times = list(run.scheduler.timesteps)
        for run.step, timestep in enumerate(times):
            composer.refine(run, noise(2), timestep)
    assert [step for step, _ in asked] == list(range(26))
    assert sum(rows == 2 for _, rows in asked) == updates


def test_one_forward_a_step_beside_the_refinement(base, concepts):
    _, run = latents(base, concepts, LoraComposer(settled=1.0), layout=HALVES)
    asked = run.denoiser
    assert (asked.forwards, asked.rows) == (SETTINGS.steps, SETTINGS.steps * 2 * SETTINGS.count)
    assert (asked.looks, asked.looked) == (3 * SETTINGS.count, 3 * SETTINGS.count)  # at shares 0, 1/4 and 1/2
    _, run = latents(base, concepts, STILL, layout=HALVES)
    assert run.denoiser.looks == 0


def test_a_small_step_lowers_the_loss_by_its_gradient_squared(base, concepts):
    composer = LoraComposer()
    with opened(base, SETTINGS, paired(concepts), composer, silent, SPREAD) as run:
        before, gradient = composer._slope(run, noise(2), TIME)
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
        step = 0.01 / float(gradient.norm())
        with torch.no_grad():
            low, high = (composer._slope(run, noise(2) + sign * step * gradient, TIME)[0].double() for sign in (-1, 1))
    assert float((low - high).sum()) == pytest.approx(-2 * step * float(gradient.square().sum()), rel=0.05)
    assert ((low < before) & (before < high)).all()
    assert not any(one.requires_grad or one.grad is not None for one in base.unet.parameters())


def test_the_step_moves_the_latents_as_the_sampler_scales_them(base, concepts):
    composer = LoraComposer(longest=100)
    with opened(base, SETTINGS, paired(concepts), composer, silent, HALVES) as run:
        first = run.scheduler.timesteps[0]
        start = noise() * run.scheduler.init_noise_sigma
        scaled = run.scheduler.scale_model_input(start, first)
        moved = run.scheduler.scale_model_input(composer.refine(run, start, first), first)
        _, gradient = composer._slope(run, scaled, first)
        torch.testing.assert_close(moved, scaled - 20 * gradient * 64 / (64 * 128), atol=1e-6, rtol=0)
        composer = LoraComposer(step_size=1e6, longest=0.05)
        moved = run.scheduler.scale_model_input(composer.refine(run, start, first) - start, first)
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.05, rel=1e-3)


def test_strength_zero_and_one_text_everywhere_is_the_base(base, concepts):
    plain = without_triggers(concepts)
    composer = LoraComposer(step_size=0, isolated=0)
    found, _ = latents(base, plain, composer, strengths=(0.0, 0.0), layout=SPREAD)
    truth, _ = latents(base, plain, Merge(), strengths=(0.0, 0.0))
    torch.testing.assert_close(found, truth, atol=1e-3, rtol=0)


def test_one_concept_everywhere_is_the_plain_adapter(base, concepts):
    plain = without_triggers(concepts)[:1]  # an adapter of the UNet alone
    found, _ = latents(base, plain, LoraComposer(step_size=0, whole_from=0), ONE, [0.7], WHOLE)
    truth, _ = latents(base, plain, Switch(), ONE, [0.7])
    torch.testing.assert_close(found, truth, atol=1e-3, rtol=0)


def test_the_authors_way_is_the_plain_adapter_where_that_has_no_more_than_they_use(base, concepts):
    def used(concept) -> Adapter:
        whole = load_concept(concept)
        return dataclasses.replace(
            whole, factors={layer: one for layer, one in whole.factors.items() if layer.endswith(INJECTED)}
        )

    plain, found = without_triggers(concepts)[:1], []
    for composer, layout, read in (
        (LoraComposer(step_size=0, whole_from=1), WHOLE, load_concept),
        (Switch(), None, used),
        (Switch(), None, load_concept),
    ):
        bank_of = partial(AdapterBank.of, load=read)
        with opened(base, ONE, paired(plain), composer, silent, layout, bank_of=bank_of) as run, torch.no_grad():
            found.append(denoise(run, composer, ONE, silent))
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=0)
    assert float((found[0] - found[2]).abs().max()) > 1e-2


def test_patches_of_noise_come_from_where_words_are_looked_at():
    owns = torch.zeros(4, 4)
    owns[0:2, 1:3] = 1
    place = Place(owns, slice(0, 2), slice(1, 3))
    looks = torch.zeros(2, 4, 4)
    looks[0, 2:4, 2:4] = 1
    looks[1, 0:2, 1:3] = 1
    start = noise(2)
    found = transplanted(start, looks, place, start)
    assert torch.equal(found[0, :, 0:4, 2:6], start[0, :, 4:8, 4:8])
    assert torch.equal(found[1], start[1])
    found[0, :, 0:4, 2:6] = start[0, :, 0:4, 2:6]
    assert torch.equal(found, start)


def test_replaced_noise_keeps_its_mean_and_deviation(base, concepts):
    composer = LoraComposer(step_size=0, replaced=True)
    with opened(base, SETTINGS, paired(concepts), composer, silent, SPREAD) as run, torch.no_grad():
        moved = composer.refine(run, noise(2), run.scheduler.timesteps[0])
    assert not torch.equal(moved, noise(2))
    for sums in (torch.mean, torch.std):
        torch.testing.assert_close(sums(moved, (1, 2, 3)), sums(noise(2), (1, 2, 3)), atol=1e-5, rtol=0)


def test_losses_isolation_and_whole_adapters_make_a_difference(base, concepts):
    found = [
        latents(base, concepts, one, layout=HALVES)[0]
        for one in (
            STILL,
            LoraComposer(step_size=2000),
            LoraComposer(step_size=0, isolated=0),
            LoraComposer(step_size=0, whole_from=1),
            LoraComposer(step_size=0, replaced=True),
        )
    ]
    assert all(one.isfinite().all() for one in found)
    assert all(float((one - found[0]).abs().max()) > 0.01 for one in found[1:])


def test_the_order_of_concepts_is_rounding(base, concepts):
    one, _ = latents(base, concepts, LoraComposer(), layout=HALVES)
    other, _ = latents(base, concepts[::-1], LoraComposer(), layout=HALVES)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_pictures_of_a_batch_do_not_touch_each_other(base, concepts):
    both, _ = latents(base, concepts, LoraComposer(replaced=True), layout=SPREAD)
    alone = dataclasses.replace(SETTINGS, seed=8, count=1)
    second, _ = latents(base, concepts, LoraComposer(replaced=True), alone, layout=SPREAD)
    torch.testing.assert_close(both[1:], second, atol=1e-3, rtol=0)


def test_small_batches_change_nothing_but_rounding(base, concepts, monkeypatch):
    whole, _ = latents(base, concepts, LoraComposer(), layout=HALVES)
    monkeypatch.setattr("studio.pipelines.denoiser.CPU_ROWS", 1)
    parts, _ = latents(base, concepts, LoraComposer(), layout=HALVES)
    torch.testing.assert_close(parts, whole, atol=1e-3, rtol=0)


@pytest.mark.parametrize("changes", [{"guidance": 1.0}, {"width": 48}, {"steps": 1}])
def test_without_guidance_odd_sizes_and_one_step(base, concepts, changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    found, _ = latents(base, concepts, LoraComposer(replaced=True), settings, layout=SPREAD)
    assert found.isfinite().all()


def test_the_other_family(tiny_sd15, concepts, tmp_path):
    base, own = load_base(find_base(str(tiny_sd15)), "cpu"), []
    for seed, concept in enumerate(concepts):
        (tmp_path / concept.name).mkdir()
        build_lora(tiny_sd15, tmp_path / concept.name / "adapter.safetensors", seed=seed)
        own.append(dataclasses.replace(concept, family="sd15", folder=tmp_path / concept.name))
    found, _ = latents(base, own, LoraComposer(), layout=SPREAD)
    still, _ = latents(base, own, STILL, layout=SPREAD)
    assert found.isfinite().all()
    assert not torch.equal(found, still)


@pytest.mark.parametrize(
    ("composer", "layout", "said"),
    [
        (LoraComposer(), None, "needs a box for <milo>"),
        (LoraComposer(), WHOLE, "needs a box for <rex>"),
        (LoraComposer(texts={"bella": "a <milo>"}), HALVES, "a text for 'bella'"),
        (LoraComposer(texts={"rex": "a <milo>"}), HALVES, "does not name it"),
    ],
)
def test_what_cannot_be_meant(base, concepts, composer, layout, said):
    with pytest.raises(UsageError, match=said):
        compose(base, SETTINGS, paired(concepts), composer, silent, layout)
