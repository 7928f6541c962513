import dataclasses

import pytest
import torch
from composing import HALVES, SETTINGS, latents
from fixtures_models import build_lora
from test_attaching import snapshot

from studio.concepts import Concept
from studio.events import Step
from studio.models import find_base, load_base
from studio.pipelines.auto_masks import AutoMasks
from studio.pipelines.baselines import Merge, Switch
from studio.pipelines.compose import compose
from studio.pipelines.freefuse import FreeFuse
from studio.pipelines.regional import Regional

BOTH = [FreeFuse(), FreeFuse(restart=True)]
NAMES = ["carrying on", "from the start again"]
PLAIN = dataclasses.replace(SETTINGS, guidance=1.0)


@dataclasses.dataclass(frozen=True)
class Given(AutoMasks):
    """The halves of the canvas, whatever was seen."""

    def __call__(self, words, features, size):
        """Left, right, and nothing left over."""
        halves = HALVES.masks(["milo", "rex"], *size)
        return torch.cat([halves, 1 - halves.sum(0, keepdim=True)])[None].expand(len(words), -1, -1, -1)


def without_triggers(concepts) -> list[Concept]:
    """Whose phrase is the class word, which the base reads as well."""
    return [dataclasses.replace(one, trigger="") for one in concepts]


def twins(concepts) -> list[Concept]:
    """Two names for one adapter that leaves the text encoders alone."""
    return [concepts[0], dataclasses.replace(concepts[0], name="rex", class_word="dog")]


@pytest.mark.parametrize("composer", BOTH, ids=NAMES)
def test_forwards_are_those_of_the_loop_and_of_what_is_drawn_ahead(base, concepts, composer):
    _, run = latents(base, concepts, dataclasses.replace(composer, probed=0.5))
    again = 1 if composer.restart else 0  # of the two steps ahead, the second is left when the masks are known
    assert (run.denoiser.forwards, run.denoiser.looks) == (SETTINGS.steps + again, again)
    assert run.denoiser.rows == (SETTINGS.steps + again) * 2 * SETTINGS.count
    assert run.denoiser.looked == again * SETTINGS.count
    assert run.denoiser.probe is None


@pytest.mark.parametrize("scheduler", ["default", "euler", "euler-a", "dpm++2m-sde", "unipc"])
def test_what_is_drawn_ahead_is_what_is_drawn(base, concepts, scheduler):
    """Where the adapters wait for as long, both ways give the same picture, chance included."""

    class Waiting(FreeFuse):
        def branches(self, run):
            return [run.state["holding"]] if run.step < self._probed(run) else super().branches(run)

    settings = dataclasses.replace(SETTINGS, scheduler=scheduler)
    found, run = latents(base, concepts, FreeFuse(probed=0.5), settings)
    again, ahead = latents(base, concepts, Waiting(probed=0.5, restart=True), settings)
    assert torch.equal(run.state["acting"].image, ahead.state["acting"].image)
    torch.testing.assert_close(found, again, atol=1e-5, rtol=0)


def test_given_masks_are_the_boxes_of_the_regional_method(base, concepts):
    found, _ = latents(base, twins(concepts), FreeFuse(own=0, others=0, restart=True, masks=Given()), PLAIN)
    truth, _ = latents(base, twins(concepts), Regional(hold=0), PLAIN, layout=HALVES)
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=0)


def test_adapters_act_in_their_mask_on_their_words_and_by_half_on_the_negative_ones(base, concepts):
    _, run = latents(base, concepts, FreeFuse(shared=0.25, own=1.5, others=3.0, masks=Given()))
    acting, tokenizer = run.state["acting"], base.tokenizers[0]
    own = [run.prompt.tokens(tokenizer, name) for name in run.names]
    assert acting.image.shape == (SETTINGS.count, 2, *run.size)
    assert (acting.words[0] == 0.5).all()
    for n in range(2):
        assert (acting.words[1, n, own[n]] == 1).all()
        assert not acting.words[1, n, own[1 - n]].any()
        assert (acting.bias.words[n, own[n]] == 1.5).all()
        assert (acting.bias.words[n, own[1 - n]] == -3).all()
    rest = [n for n in range(tokenizer.model_max_length) if n not in own[0] + own[1]]
    assert (acting.words[1, :, rest] == 0.25).all()
    assert not acting.bias.words[:, rest].any()


def test_every_adapter_reads_its_own_words(base, concepts):
    _, run = latents(base, concepts, FreeFuse(), dataclasses.replace(SETTINGS, steps=1))
    texts, own = run.denoiser.texts, [run.prompt.tokens(base.tokenizers[0], name) for name in run.names]
    for n, name in enumerate(run.names):
        assert torch.equal(texts["all"].embeds[1, own[n]], texts[name].embeds[1, own[n]])
    assert not torch.equal(texts["milo"].embeds[1, own[1]], texts["rex"].embeds[1, own[1]])
    assert torch.equal(base.encode(["a cat and an dog on the grass"]).embeds, texts["base"].embeds[1:])


@pytest.mark.parametrize("composer", BOTH, ids=NAMES)
def test_strength_zero_without_a_bias_is_the_base_bit_for_bit(base, concepts, composer):
    plain, still = without_triggers(concepts), dataclasses.replace(composer, own=0, others=0)
    found, _ = latents(base, plain, still, strengths=(0.0, 0.0))
    truth, _ = latents(base, plain, Merge(), strengths=(0.0, 0.0))
    assert torch.equal(found, truth)
    biased, _ = latents(base, plain, composer, strengths=(0.0, 0.0))
    assert not torch.equal(biased, truth)


@pytest.mark.parametrize("composer", BOTH, ids=NAMES)
def test_one_concept_has_the_whole_picture_bit_for_bit(base, concepts, composer):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    found, run = latents(base, concepts[:1], composer, settings, [0.7])
    truth, _ = latents(base, concepts[:1], Switch(), settings, [0.7])
    assert torch.equal(found, truth)
    assert run.denoiser.looks == 0


def test_the_bias_ends_when_told(base, concepts):
    _, run = latents(base, concepts, FreeFuse(biased=0.5))
    (acting,) = FreeFuse(biased=0.5).branches(run)
    assert acting.bias is None
    run.step = 1
    (acting,) = FreeFuse(biased=0.5).branches(run)
    assert acting.bias is not None


@pytest.mark.parametrize("composer", BOTH, ids=NAMES)
def test_pictures_have_masks_of_their_own_and_do_not_touch_each_other(base, concepts, composer):
    both, run = latents(base, concepts, composer)
    for n in range(2):
        alone, single = latents(base, concepts, composer, dataclasses.replace(SETTINGS, seed=7 + n, count=1))
        assert torch.equal(run.state["acting"].image[n], single.state["acting"].image[0])
        torch.testing.assert_close(both[n : n + 1], alone, atol=1e-4, rtol=0)
    assert not torch.equal(*run.state["acting"].image)


def test_the_order_of_concepts_is_rounding(base, concepts):
    one, _ = latents(base, concepts, FreeFuse())
    other, _ = latents(base, concepts[::-1], FreeFuse())
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.parametrize("composer", BOTH, ids=NAMES)
@pytest.mark.parametrize(
    "changes",
    [{"guidance": 1.0}, {"steps": 1}, {"steps": 2, "scheduler": "heun"}, {"width": 48, "height": 80, "count": 1}],
    ids=str,
)
def test_unusual_requests(base, concepts, composer, changes):
    found, run = latents(base, concepts, composer, dataclasses.replace(SETTINGS, **changes))
    assert found.isfinite().all()
    assert run.state["acting"].image.flatten(2).any(2).all()


def test_small_batches_change_nothing_but_rounding(base, concepts, monkeypatch):
    whole, _ = latents(base, concepts, FreeFuse(restart=True))
    monkeypatch.setattr("studio.pipelines.denoiser.CPU_ROWS", 3)
    parts, _ = latents(base, concepts, FreeFuse(restart=True))
    torch.testing.assert_close(parts, whole, atol=1e-3, rtol=0)


def test_the_other_family(tiny_sd15, concepts, tmp_path):
    base, own = load_base(find_base(str(tiny_sd15)), "cpu"), []
    for seed, concept in enumerate(concepts):
        (tmp_path / concept.name).mkdir()
        build_lora(tiny_sd15, tmp_path / concept.name / "adapter.safetensors", seed=seed)
        own.append(dataclasses.replace(concept, family="sd15", folder=tmp_path / concept.name))
    for composer in BOTH:
        found, _ = latents(base, own, composer)
        assert found.isfinite().all()


def test_the_base_is_as_before_also_after_an_accident(base, concepts):
    before = snapshot(base)
    for composer in BOTH:
        for last in (1, 3):

            def accident(event, last=last):
                if isinstance(event, Step) and event.step == last:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                compose(base, SETTINGS, [(one, 1.0) for one in concepts], composer, accident)
            assert snapshot(base) == before
            assert not any("forward" in vars(module) for module in base.unet.modules())
            assert not any(module._forward_hooks for module in base.unet.modules())
