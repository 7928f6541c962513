from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL.Image import Image

from studio.concepts import Concept
from studio.errors import StudioError, UsageError
from studio.events import Notice, Phase, Step, silent
from studio.models import find_base, load_base
from studio.pipelines.generate import PICTURES_AT_ONCE, GenerateSettings, generate
from studio.pipelines.schedulers import SCHEDULERS, make_scheduler


@pytest.fixture(scope="module")
def base(tiny_sdxl):
    return load_base(find_base(str(tiny_sdxl)), "cpu")


@pytest.fixture
def concepts(tiny_concepts: list[Concept]) -> list[Concept]:
    return tiny_concepts


def difference(one: Image, other: Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def plainly(kind: type, folder: Path, **call) -> Image:
    """What a user of diffusers alone gets."""
    pipe = kind.from_pretrained(folder)
    if "lora" in call:
        pipe.load_lora_weights(call.pop("lora"))
    return pipe(generator=torch.Generator().manual_seed(call.pop("seed")), num_inference_steps=4, **call).images[0]


def test_plain_diffusers_draws_the_same_concept(base, concepts, tiny_sdxl):
    settings = GenerateSettings("a <milo> on the grass", steps=4, guidance=5.0, seed=7)
    ours = generate(base, settings, [(concepts[0], 1.0)], silent)[0]
    call = {"prompt": "a sks cat on the grass", "guidance_scale": 5.0, "seed": 7, "width": 32, "height": 32}
    kind = diffusers.StableDiffusionXLPipeline
    assert difference(ours, plainly(kind, tiny_sdxl, lora=concepts[0].adapter_file, **call)) <= 2
    assert difference(ours, plainly(kind, tiny_sdxl, **call)) > 10


def test_plain_diffusers_draws_the_same_with_a_negative_prompt_on_sd15(tiny_sd15):
    base = load_base(find_base(str(tiny_sd15)), "cpu")
    settings = GenerateSettings("a red cat", "night", width=24, height=16, steps=4, guidance=7.5, seed=3)
    call = {"prompt": "a red cat", "negative_prompt": "night", "guidance_scale": 7.5, "seed": 3}
    same = plainly(diffusers.StableDiffusionPipeline, tiny_sd15, width=24, height=16, **call)
    assert difference(generate(base, settings, [], silent)[0], same) <= 2


def test_a_picture_is_the_same_alone_and_in_any_batch(base, concepts):
    many = GenerateSettings("<milo> and <rex>", steps=2, seed=11, count=PICTURES_AT_ONCE + 2, scheduler="euler-a")
    both = [(concepts[0], 0.8), (concepts[1], 0.5)]
    pictures = generate(base, many, both, silent)
    assert len(pictures) == PICTURES_AT_ONCE + 2
    for n in (0, 5, PICTURES_AT_ONCE + 1):
        alone = GenerateSettings("<milo> and <rex>", steps=2, seed=11 + n, scheduler="euler-a")
        assert difference(generate(base, alone, both, silent)[0], pictures[n]) <= 1
    assert difference(pictures[0], pictures[1]) > 10


def test_every_step_of_every_batch_is_told(base):
    events = []
    generate(base, GenerateSettings("a cat", steps=3, count=PICTURES_AT_ONCE + 1), [], events.append)
    assert events == [Phase("Drawing"), *(Step(n, 6) for n in range(1, 7))]


def test_words_that_the_base_does_not_read_are_named(base):
    said = []
    generate(base, GenerateSettings("cat " * 22 + "dog robot", steps=1), [], said.append)
    assert [event.message for event in said if isinstance(event, Notice)] == [
        "The base reads 24 tokens of a text; the rest has no effect: 'dog robot'."
    ]


def test_ctrl_c_leaves_the_base_as_it_was(base, concepts):
    settings = GenerateSettings("a <rex>", steps=3, scheduler="ddim", vae_tiling=True)
    own, plain = base.scheduler, generate(base, GenerateSettings("a cat", steps=2), [], silent)[0]

    def stop(event):
        if isinstance(event, Step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(base, settings, [(concepts[1], 1.0)], stop)
    assert base.scheduler is own
    assert (base.vae.use_tiling, base.vae.use_slicing) == (False, False)
    assert difference(generate(base, GenerateSettings("a cat", steps=2), [], silent)[0], plain) == 0


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "dpm++2m-karras"])
def test_every_scheduler_keeps_to_the_bases_noise_schedule(base, name):
    config = make_scheduler(base, name).config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert config.beta_schedule == "scaled_linear"
    assert not config.get("clip_sample")
    picture = generate(base, GenerateSettings("a cat", steps=2, scheduler=name), [], silent)[0]
    assert 1 < np.asarray(picture, float).std() < 120


def test_karras_steps_are_refused_where_the_schedule_begins_at_pure_noise(base, tiny_sd15):
    with pytest.raises(UsageError, match="pure noise"):
        generate(base, GenerateSettings("a cat", scheduler="dpm++2m-karras"), [], silent)
    other = load_base(find_base(str(tiny_sd15)), "cpu")
    assert make_scheduler(other, "dpm++2m-karras").config.use_karras_sigmas


@pytest.mark.parametrize(
    "own",
    [
        {"algorithm_type": "sde-dpmsolver++"},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_lu_lambdas": True},
    ],
)
def test_a_sampler_by_name_is_what_its_name_says_whatever_the_base_draws_with(tiny_sd15, own):
    base = load_base(find_base(str(tiny_sd15)), "cpu")
    plain = {name: make_scheduler(base, name) for name in SCHEDULERS[1:]}
    base.pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(base.scheduler.config, **own)
    for name, truth in plain.items():
        made = make_scheduler(base, name)
        for one in (truth, made):
            one.set_timesteps(5)
        assert torch.equal(made.timesteps, truth.timesteps)
        assert hasattr(made, "sigmas") == hasattr(truth, "sigmas")
        assert not hasattr(made, "sigmas") or torch.equal(made.sigmas, truth.sigmas)
        if name.startswith("dpm"):
            assert made.config.algorithm_type == ("sde-dpmsolver++" if "sde" in name else "dpmsolver++")


@pytest.mark.parametrize("fixture", ["tiny_sdxl", "tiny_sd15"])
def test_tiles_join_to_nearly_the_same_picture(fixture, request, monkeypatch):
    base = load_base(find_base(str(request.getfixturevalue(fixture))), "cpu")
    factor = base.pipe.vae_scale_factor
    monkeypatch.setattr(base.vae, "tile_latent_min_size", 16)
    monkeypatch.setattr(base.vae, "tile_sample_min_size", 16 * factor)
    calls, decode = [], base.vae.decoder.forward
    monkeypatch.setattr(base.vae.decoder, "forward", lambda tile: calls.append(tile.shape) or decode(tile))
    side = 24 * factor
    plain, tiled = (
        generate(base, GenerateSettings("a cat", width=side, height=side, steps=2, vae_tiling=tiling), [], silent)[0]
        for tiling in (False, True)
    )
    assert len(calls) > 2
    assert plain.size == tiled.size == (side, side)
    assert (
        np.abs(np.asarray(plain, float) - np.asarray(tiled, float)).mean() < 8
    )  # of 255; random weights, no seams learned


def test_a_picture_of_no_numbers_is_a_failure_and_not_black(base, monkeypatch):
    decode = base.vae.decoder.forward
    monkeypatch.setattr(base.vae.decoder, "forward", lambda latents: decode(latents) * torch.nan)
    with pytest.raises(StudioError, match=r"overflow in torch\.float32"):
        generate(base, GenerateSettings("a cat", steps=1), [], silent)


def test_half_precision_draws_nearly_the_same_concept(tiny_sdxl, concepts):
    full, half = (load_base(find_base(str(tiny_sdxl)), "cpu") for _ in range(2))
    half.pipe.to(torch.bfloat16)
    settings = GenerateSettings("a <rex>", steps=2)
    pictures = [generate(base, settings, [(concepts[1], 1.0)], silent)[0] for base in (full, half)]
    assert 0 < difference(*pictures) < 40


def test_sizes_and_names_are_checked_before_drawing(base, concepts):
    for settings, said in (
        (GenerateSettings("a cat", width=40), "width 40"),
        (GenerateSettings("a <milou>"), "<milou>"),
    ):
        with pytest.raises(UsageError, match=said):
            generate(base, settings, [(concepts[0], 1.0)], silent)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", [False, True])
def test_a_gpu_draws_nearly_the_cpus_picture(base, concepts, tiny_sdxl, cuda, offload):
    settings = GenerateSettings("a <milo> on the grass", steps=4, seed=7, offload=offload)
    on_gpu = load_base(find_base(str(tiny_sdxl)), cuda, torch.float32, offload=offload)
    drawn, expected = (generate(b, settings, [(concepts[0], 1.0)], silent)[0] for b in (on_gpu, base))
    assert difference(drawn, expected) <= 3
