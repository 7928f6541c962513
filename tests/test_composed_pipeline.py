import copy
import dataclasses
import re
import shutil
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import SDXLCFGCutoffCallback
from fixtures_models import build_lora
from test_attaching import snapshot
from test_generate import difference

from studio.adapters import Adapter, load_concept
from studio.bases import embedded_folder, find_base
from studio.concepts import Concept, write_concept
from studio.errors import UsageError
from studio.events import silent
from studio.pipelines import composed_pipeline
from studio.pipelines.baselines import Composite, Merge
from studio.pipelines.compose import compose
from studio.pipelines.composed_pipeline import ComposedPipeline
from studio.pipelines.generate import generate
from studio.pipelines.settings import GenerateSettings
from studio.regions import Box, Layout

PROMPT = "a <milo> and an <rex> on the grass"
FEW: Any = {"num_inference_steps": 3, "guidance_scale": 4.0}
DOCS = Path(__file__).parents[1] / "docs" / "composing.md"


@pytest.fixture
def pipe(base, tiny_concepts):
    made = ComposedPipeline(base)
    for concept in tiny_concepts:
        made.add_concept(concept)
    return made


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def latents(pipe: ComposedPipeline, **options: Any) -> torch.Tensor:
    return pipe(PROMPT, **{"generator": seeded(7)[0], "output_type": "latent"} | FEW | options).images


def test_it_draws_what_compose_draws(pipe, base, tiny_concepts):
    settings = GenerateSettings(PROMPT, "night", steps=3, guidance=4.0, seed=7, count=2)
    pairs = [(one, s) for one, s in zip(tiny_concepts, (0.8, 1.0), strict=True)]
    truth = compose(base, settings, pairs, Composite(), silent)
    found = pipe(
        PROMPT, {"milo": 0.8, "rex": 1.0}, "composite", negative_prompt="night", generator=seeded(7, 8), **FEW
    ).images
    assert [difference(*two) for two in zip(found, truth, strict=True)] == [0, 0]


def test_the_usual_width_is_taken_where_no_size_is_given(pipe, monkeypatch):
    wide = latents(pipe, width=48)
    monkeypatch.setattr(composed_pipeline, "usual_width", lambda source, things: 24 * things)
    assert torch.equal(latents(pipe), wide)
    assert latents(pipe, height=32).shape != wide.shape


def test_tiling_that_its_owner_turned_on_stays_on(pipe, base, tiny_concepts, monkeypatch):
    monkeypatch.setattr(base.vae, "use_tiling", True)
    monkeypatch.setattr(base.vae, "use_slicing", True)
    pipe(PROMPT, num_inference_steps=1)
    assert base.vae.use_tiling
    for tiling in (False, True):
        generate(base, GenerateSettings("a cat", steps=1, vae_tiling=tiling), [], silent)
        compose(
            base,
            GenerateSettings(PROMPT, steps=1, vae_tiling=tiling),
            [(c, 1.0) for c in tiny_concepts],
            Merge(),
            silent,
        )
        assert (base.vae.use_tiling, base.vae.use_slicing) == (True, True)


def test_merging_on_a_pipeline_of_diffusers_is_what_diffusers_draws_with_its_own_adapters(
    tiny_sdxl, tiny_loras, tiny_concepts
):
    theirs: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_sdxl)
    theirs.set_progress_bar_config(disable=True)
    pipe = ComposedPipeline.from_pipe(theirs)
    pipe.add_concept(tiny_concepts[1])
    before = snapshot(pipe.base)
    found = pipe("an <rex> on the grass", composer="merge", generator=seeded(5)[0], output_type="np", **FEW).images
    assert snapshot(pipe.base) == before
    theirs.load_lora_weights(tiny_loras[1])
    truth = theirs("an ohwx dog on the grass", generator=seeded(5)[0], output_type="np", **FEW).images
    np.testing.assert_allclose(found, truth, atol=2e-3)


def test_calls_from_two_threads_draw_one_after_the_other(pipe):
    alone = {name: latents(pipe, composer=name) for name in ("auto", "merge")}
    drawn, both = {}, threading.Barrier(2, timeout=0.2)

    def meet(*given):
        with suppress(threading.BrokenBarrierError):
            both.wait()
        return {}

    def call(name):
        drawn[name] = latents(pipe, composer=name, callback_on_step_end=meet)

    threads = [threading.Thread(target=call, args=(name,)) for name in alone]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert drawn.keys() == alone.keys()
    assert all(torch.equal(drawn[name], alone[name]) for name in alone)


def test_a_copy_draws_the_same(pipe):
    assert torch.equal(latents(copy.deepcopy(pipe)), latents(pipe))


def test_the_embedded_base_is_known_where_diffusers_loaded_it():
    loaded = diffusers.StableDiffusionXLPipeline.from_pretrained(embedded_folder(), use_safetensors=True)
    source = ComposedPipeline.from_pipe(loaded).base.source
    assert source == find_base("picturebook")


def test_names_are_looked_up_in_the_library(base, home, tiny_concepts):
    folder = home.library / "milo"
    folder.mkdir(parents=True)
    shutil.copy(tiny_concepts[0].adapter_file, folder)
    write_concept(Concept("milo", "sks", "cat", "tiny", "sdxl", "lora", folder))
    by_library = ComposedPipeline(base)("a <milo>", generator=seeded(1)[0], **FEW).images[0]
    by_folder = ComposedPipeline(base, home.root / "empty")
    assert by_folder.add_concept(folder).name == "milo"
    assert difference(by_library, by_folder("a <milo>", generator=seeded(1)[0], **FEW).images[0]) == 0
    with pytest.raises(UsageError, match="no concept 'mlo'"):
        ComposedPipeline(base)("a <mlo>")


def test_a_name_of_the_library_is_meant_before_a_folder_of_photos(base, home, tiny_concepts, tmp_path, monkeypatch):
    kept = shutil.copytree(tiny_concepts[0].folder, home.library / "milo")
    write_concept(dataclasses.replace(tiny_concepts[0], folder=kept))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "milo").mkdir()
    assert ComposedPipeline(base).add_concept("milo").folder == kept


def test_an_adapters_file_is_a_concept_with_its_words(base, pipe, tiny_loras, tiny_concepts):
    strange = ComposedPipeline(base)
    added = strange.add_concept(tiny_loras[0], name="milo", class_word="cat", trigger="sks")
    assert added.phrase == tiny_concepts[0].phrase
    alone = pipe("a <milo>", generator=seeded(1)[0], **FEW).images[0]
    assert difference(strange("a <milo>", generator=seeded(1)[0], **FEW).images[0], alone) == 0
    with pytest.raises(UsageError, match="needs words"):
        strange.add_concept(tiny_loras[0])


def test_an_adapter_is_read_again_only_where_its_file_changed(base, tiny_concepts, tiny_loras, tmp_path, monkeypatch):
    shutil.copy(tiny_loras[0], tmp_path / "adapter.safetensors")
    pipe, read = ComposedPipeline(base), []
    pipe.add_concept(dataclasses.replace(tiny_concepts[0], folder=tmp_path))

    def reading(concept: Concept) -> Adapter:
        read.append(concept.name)
        return load_concept(concept)

    monkeypatch.setattr("studio.pipelines.composed_pipeline.load_concept", reading)
    first, again = (pipe("a <milo>", generator=seeded(1)[0], **FEW).images[0] for _ in range(2))
    assert difference(first, again) == 0
    assert read == ["milo"]
    shutil.copy(tiny_loras[1], tmp_path / "adapter.safetensors")
    assert difference(first, pipe("a <milo>", generator=seeded(1)[0], **FEW).images[0]) > 1
    assert read == ["milo"] * 2


def test_sd15_composes_too(tiny_sd15, tmp_path):
    pipe = ComposedPipeline.from_pretrained(tiny_sd15, "cpu")
    for n, name in enumerate(("milo", "rex")):
        file = build_lora(tiny_sd15, tmp_path / f"{name}.safetensors", seed=n, text=True)
        pipe.add_concept(file, name=name, class_word="cat", trigger="sks")
    found = [latents(pipe, composer=composer) for composer in ("merge", "composite", "recentred")]
    assert all(one.isfinite().all() for one in found)
    assert not torch.allclose(found[0], found[1])


def test_noise_comes_from_the_generators_where_they_stand(pipe):
    """Not from the seeds that they began with: one that was used already gives another picture."""
    fresh, used = seeded(7, 7)
    torch.randn(10, generator=used)
    assert torch.equal(latents(pipe, generator=fresh), latents(pipe, generator=seeded(7)[0]))
    assert not torch.allclose(latents(pipe, generator=used), latents(pipe, generator=seeded(7)[0]))


def test_one_generator_for_two_pictures_and_none(pipe):
    both = latents(pipe, num_images_per_prompt=2)
    assert both.shape == (2, 4, 8, 8)
    assert not torch.allclose(both[0], both[1])
    torch.manual_seed(3)
    first = latents(pipe, generator=None)
    torch.manual_seed(3)
    assert torch.equal(first, latents(pipe, generator=None))
    assert not torch.equal(first, latents(pipe, generator=None))


@pytest.mark.parametrize(("output_type", "shape"), [("np", (1, 32, 48, 3)), ("pt", (1, 3, 32, 48))])
def test_other_output_types(pipe, output_type, shape):
    images = pipe(PROMPT, output_type=output_type, width=48, height=32, generator=seeded(7)[0], **FEW).images
    assert images.shape == shape
    assert 0 <= images.min() < images.max() <= 1


def test_the_callback_sees_every_step_and_may_change_the_latents(pipe):
    seen = []

    def callback(got, step, timestep, tensors):
        seen.append((got, step, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    assert not latents(pipe, callback_on_step_end=callback).any()
    assert [(got is pipe, step) for got, step, _ in seen] == [(True, 0), (True, 1), (True, 2)]
    assert [t for *_, t in seen] == sorted({t for *_, t in seen}, reverse=True)


def test_a_callback_can_end_the_drawing(pipe):
    seen = []

    def callback(got, step, timestep, tensors):
        seen.append(tensors["latents"])
        got._interrupt = step == 1
        return tensors

    ended = latents(pipe, callback_on_step_end=callback)
    assert len(seen) == 2
    assert torch.equal(ended, seen[1])
    assert latents(pipe).isfinite().all()


def test_a_callback_that_wants_more_than_latents_is_refused(pipe):
    with pytest.raises(UsageError, match="asks for"):
        latents(pipe, callback_on_step_end=SDXLCFGCutoffCallback(cutoff_step_ratio=0.5))


def test_the_documents_own_method_draws(pipe):
    """And at no strength it is the base."""
    text = DOCS.read_text(encoding="utf-8")
    example = re.search(r"<!-- an example -->\n```python\n(.*?)```", text, re.DOTALL)
    assert example is not None
    made: dict[str, Any] = {}
    exec(compile(example[1], str(DOCS), "exec"), made)
    (picture,) = made["draw"](pipe, PROMPT, generator=seeded(7)[0], num_inference_steps=10)
    (merged,) = pipe(PROMPT, composer="merge", generator=seeded(7)[0], num_inference_steps=10).images
    assert difference(picture, merged) > 1
    silent_ones = {"concepts": {"milo": 0.0, "rex": 0.0}}
    assert torch.equal(
        latents(pipe, composer=made["Relay"](), **silent_ones), latents(pipe, composer=Merge(), **silent_ones)
    )


def test_notices_are_warnings(pipe):
    with pytest.warns(UserWarning, match="does not look at boxes"):
        latents(pipe, composer="merge", layout=Layout({"milo": Box(0, 0, 0.5, 1)}))
    with pytest.warns(UserWarning, match="negative prompt has no effect"):
        latents(pipe, guidance_scale=1.0, negative_prompt="night")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        latents(pipe)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"composer": "compsite"}, "no method 'compsite'"),
        ({"composer": Composite}, "but a class"),
        ({"composer": object()}, "has no 'folds'"),
        ({"composer": "regional"}, "needs a box for <milo>"),
        ({"composer": "switch", "num_inference_steps": 1}, "leave no turn for <rex>"),
        ({"concepts": {"milo": float("nan"), "rex": 1.0}}, "strength of <milo> is nan"),
        ({"concepts": ["milo"]}, "names <rex>"),
        ({"concepts": []}, "names <milo>"),
        ({"layout": Layout({"bella": Box(0, 0, 1, 1)})}, "box for 'bella'"),
        ({"generator": seeded(1, 2), "num_images_per_prompt": 3}, "2 generators are given for 3"),
        ({"output_type": "png"}, "no output type 'png'"),
        ({"width": 33}, "width 33 is not a multiple"),
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"guidance_scale": float("nan")}, "guidance is nan"),
    ],
)
def test_what_cannot_be_meant_is_refused(pipe, options, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        latents(pipe, **options)


def test_a_list_of_prompts_is_refused(pipe):
    with pytest.raises(UsageError, match="The prompt is a list"):
        pipe([PROMPT])


def test_pipelines_that_would_not_be_the_base_are_refused(tiny_sdxl, tiny_loras):
    theirs = diffusers.DiffusionPipeline.from_pretrained(tiny_sdxl)
    theirs.load_lora_weights(tiny_loras[0])
    with pytest.raises(UsageError, match="adapters of its own"):
        ComposedPipeline.from_pipe(theirs)
    theirs.unload_lora_weights()
    assert ComposedPipeline.from_pipe(theirs).base.family == "sdxl"
    with pytest.raises(UsageError, match="StableDiffusionXLImg2ImgPipeline is no base"):
        ComposedPipeline.from_pipe(diffusers.StableDiffusionXLImg2ImgPipeline(**theirs.components))
