"""Styles that ride along: whatever the method, they act as if the base had been trained so."""

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from fixtures_models import build_lora
from test_attaching import snapshot
from test_generate import difference

from studio.adapters import Adapter, load_adapter
from studio.attaching import attach
from studio.bank import AdapterBank
from studio.concepts import Concept
from studio.errors import UsageError
from studio.events import Notice, silent
from studio.factors import Dora, LowRank
from studio.models import find_base, load_base
from studio.pipelines.baselines import Composite, Merge
from studio.pipelines.compose import compose, draw
from studio.pipelines.composed_pipeline import ComposedPipeline
from studio.pipelines.generate import generate
from studio.pipelines.methods import DEFAULT_METHOD, METHODS, find_method
from studio.pipelines.settings import GenerateSettings
from studio.regions import Box, Layout

PLAIN = "a <milo> and an <rex> on the grass"
SETTINGS = GenerateSettings(PLAIN, "night", steps=6, guidance=4.0, seed=7)
WRITTEN = dataclasses.replace(SETTINGS, prompt=f"{PLAIN}, zwx drawing")
HALVES = Layout({"milo": Box(0, 0, 0.5, 1), "rex": Box(0.5, 0, 1, 1)})


@pytest.fixture(scope="module")
def base(tiny_sdxl):
    return load_base(find_base(str(tiny_sdxl)), "cpu")


@pytest.fixture(scope="module")
def style(tiny_sdxl, tmp_path_factory):
    """Of another rank than the subjects', on the text encoders too."""
    folder = tmp_path_factory.mktemp("neon")
    build_lora(tiny_sdxl, folder / "adapter.safetensors", seed=5, rank=5, text=True)
    return Concept("neon", "zwx", "drawing", "tiny", "sdxl", "lora", folder)


@pytest.fixture
def subjects(tiny_concepts):
    return [(one, s) for one, s in zip(tiny_concepts, (0.8, 1.0), strict=True)]


def drawn(base, subjects, method, settings=SETTINGS, **options: Any) -> torch.Tensor:
    return draw(base, settings, subjects, find_method(method).make(), silent, HALVES if subjects else None, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_style_of_strength_zero_is_none(base, subjects, style, method):
    assert torch.equal(drawn(base, subjects, method, styles=[(style, 0.0)]), drawn(base, subjects, method))


@pytest.mark.parametrize("method", METHODS)
def test_a_style_is_as_if_the_base_were_of_that_style(base, subjects, style, method):
    found = drawn(base, subjects, method, styles=[(style, 0.3)])
    with attach(base, [(style.adapter_file, 0.3)]):
        truth = drawn(base, subjects, method, WRITTEN)
    plain = drawn(base, subjects, method, WRITTEN)
    assert (found - truth).abs().max() < 1e-3
    assert (found - plain).abs().max() > 0.1


def test_merging_with_a_style_is_merging_both(base, subjects, style):
    found = drawn(base, subjects, "merge", styles=[(style, 0.3)])
    named = dataclasses.replace(SETTINGS, prompt=f"{PLAIN}, <neon>")
    assert torch.equal(found, draw(base, named, [*subjects, (style, 0.3)], Merge(), silent))


def test_a_style_without_a_subject_is_a_plain_draw(base, style):
    settings = GenerateSettings("a red cat", steps=3, guidance=4.0, seed=3)
    truth = generate(base, dataclasses.replace(settings, prompt="a red cat, <neon>"), [(style, 0.5)], silent)
    for method in METHODS.values():
        (found,) = compose(base, settings, [], method.make(), silent, styles=[(style, 0.5)])
        assert difference(found, truth[0]) <= 1


def test_several_styles_ride_in_the_order_given(base, subjects, style, tiny_sdxl, tmp_path):
    build_lora(tiny_sdxl, tmp_path / "adapter.safetensors", seed=6, rank=3, text=True)
    other = dataclasses.replace(style, name="ink", trigger="vrk", folder=tmp_path)
    found = drawn(base, subjects, "composite", styles=[(style, 0.3), (other, 0.2)])
    with attach(base, [(style.adapter_file, 0.3), (other.adapter_file, 0.2)]):
        truth = drawn(
            base, subjects, "composite", dataclasses.replace(WRITTEN, prompt=f"{WRITTEN.prompt}, vrk drawing")
        )
    assert (found - truth).abs().max() < 1e-3


def test_a_composer_sees_the_subjects_alone(base, subjects, style):
    class Watching(Composite):
        def begin(self, run):
            seen.append((run.names, run.strengths, run.only(1), run.denoiser.bank.count, list(run.prompt.places)))
            super().begin(run)

    seen: list[Any] = []
    draw(base, SETTINGS, subjects, Watching(), silent, styles=[(style, 0.3)])
    assert seen == [(["milo", "rex"], (0.8, 1.0), (0.0, 1.0), 2, ["milo", "rex", "neon"])]


def test_what_depends_on_the_bases_weights_depends_on_its_own(base, style, tiny_concepts):
    """DoRA's change is a share of the weight: not of one that a style has moved."""
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    rng = torch.Generator().manual_seed(0)
    pair = LowRank(torch.randn(3, 16, generator=rng), torch.randn(16, 3, generator=rng), 3.0)
    adapters = {
        "milo": Adapter("milo", "test", "sdxl", {layer: Dora(pair, torch.full((16, 1), 3.0))}),
        "neon": load_adapter(style.adapter_file),
    }
    milo = [(tiny_concepts[0], 0.7)]
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    bank_of = partial(AdapterBank.of, load=lambda one: adapters[one.name])
    one, both = (
        draw(base, settings, milo, how, silent, styles=[(style, 0.3)], bank_of=bank_of)
        for how in (Composite(), Merge())
    )
    assert (one - both).abs().max() < 1e-3


def test_the_words_are_added_once_and_said(base, subjects, style):
    def told(prompt: str, strength: float = 0.3) -> list[str]:
        said = []
        settings = dataclasses.replace(SETTINGS, prompt=prompt, steps=1)
        compose(base, settings, subjects, Merge(), said.append, styles=[(style, strength)])
        return [event.message for event in said if isinstance(event, Notice)]

    whole = "a sks cat and an ohwx dog on the grass, zwx drawing"
    assert told(PLAIN) == [f"With 'zwx drawing' for the style, the prompt is {whole!r}."]
    assert told(f"{PLAIN}, <neon>") == told(f"{PLAIN}, zwx drawing") == told(PLAIN)
    assert "the prompt is 'a zwx drawing of a sks cat and an ohwx dog'" in told("a <neon> of a <milo> and an <rex>")[0]
    assert told(PLAIN, 0.0) == []


def test_the_base_is_as_before_also_after_an_accident(base, subjects, style):
    before = snapshot(base)

    def accident(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    for composer in (Merge(), Composite()):
        with pytest.raises(KeyboardInterrupt):
            draw(base, SETTINGS, subjects, composer, silent, after_step=accident, styles=[(style, 0.3)])
        assert snapshot(base) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strength": float("nan")}, "strength of <neon> is nan"),
        ({"name": "milo"}, "<milo> is given twice"),
        ({"count": 7}, "9 concepts are too many"),
    ],
)
def test_styles_that_cannot_be_meant(base, subjects, style, change, said):
    one = dataclasses.replace(style, name=change.get("name", "neon"))
    many = [dataclasses.replace(style, name=f"neon{n}") for n in range(change.get("count", 1) - 1)]
    with pytest.raises(UsageError, match=said):
        compose(
            base, SETTINGS, subjects, Merge(), silent, styles=[(s, change.get("strength", 1.0)) for s in (one, *many)]
        )


def test_a_pipeline_takes_styles(base, subjects, style):
    pipe = ComposedPipeline(base)
    for concept, _ in [*subjects, (style, 1.0)]:
        pipe.add_concept(concept)
    options: Any = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
    with pytest.warns(UserWarning, match="With 'zwx drawing' for the style"):
        found = pipe(
            f"{PLAIN}, <neon>", styles={"neon": 0.3}, generator=torch.Generator().manual_seed(7), **options
        ).images
    settings = GenerateSettings(PLAIN, steps=3, guidance=4.0, seed=7)
    truth = draw(
        base, settings, [(one, 1.0) for one, _ in subjects], find_method(DEFAULT_METHOD).make(), silent,
        styles=[(style, 0.3)],
    )  # fmt: skip
    assert torch.equal(found, truth)
    with pytest.warns(UserWarning, match="the prompt is 'a red cat, zwx drawing'"):
        assert pipe("a red cat", styles=["neon"], generator=torch.Generator(), **options).images.isfinite().all()
