import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from training_helpers import same, tiny_recipe

from studio.adapters import Adapter
from studio.bases import BaseSource, find_base, scheduler_config
from studio.errors import UsageError
from studio.events import silent
from studio.home import Home
from studio.models import load_base
from studio.pipelines.compose import compose
from studio.pipelines.generate import GenerateSettings, generate
from studio.pipelines.methods import METHODS
from studio.pipelines.schedulers import ZERO_SNR_NOTE, make_scheduler
from studio.trainers import dreambooth
from studio.trainers.dreambooth import train_concept
from studio.trainers.losses import noise_schedule
from studio.trainers.training import Training

CONFIG = Path("scheduler", "scheduler_config.json")


@pytest.fixture
def velocity(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """A base with v-prediction whose schedule ends before pure noise, and whose steps lead from its beginning."""
    folder = shutil.copytree(tiny_sdxl, tmp_path / "velocity")
    config = json.loads((folder / CONFIG).read_text())
    config |= {"rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def alpha_bars() -> torch.Tensor:
    """Algorithm 1 of Lin et al. 2023 on scaled-linear betas, in float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    roots = (1 - betas).cumprod(0).sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def test_the_trained_schedule_is_that_of_the_paper(velocity: Path) -> None:
    base = load_base(find_base(str(velocity)), "cpu")
    plain, rescaled = noise_schedule(base), noise_schedule(base, zero_terminal_snr=True)
    latents, noise = torch.randn(2, 4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 300, 998, 999])
    bar = alpha_bars()[steps].reshape(-1, 1, 1, 1)
    noisy = bar.sqrt() * latents.double() + (1 - bar).sqrt() * noise.double()
    wanted = bar.sqrt() * noise.double() - (1 - bar).sqrt() * latents.double()
    torch.testing.assert_close(rescaled.noisy(latents, noise, steps).double(), noisy, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(rescaled.target(latents, noise, steps).double(), wanted, atol=2e-4, rtol=1e-4)
    assert torch.equal(rescaled.noisy(latents, noise, steps)[-1], noise[-1])
    assert not torch.equal(plain.noisy(latents, noise, steps)[-1], noise[-1])


@pytest.mark.slow
def test_it_trains_as_on_a_base_that_has_it(
    velocity: Path, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the class pictures, which each base draws by its own schedule."""
    seen: list[Training] = []
    prepare = Training.__post_init__
    monkeypatch.setattr(Training, "__post_init__", lambda self: (prepare(self), seen.append(self))[0])
    alone = {"prior_preservation": False, "steps": 3}
    concepts = [
        train_concept(tiny_recipe(base, home, alone | more), home)
        for base, home, more in (
            (velocity, Home(tmp_path / "a"), {"zero_terminal_snr": True}),
            (tiny_sdxl, Home(tmp_path / "b"), {}),
            (velocity, Home(tmp_path / "c"), {}),
        )
    ]
    assert same(concepts[0], concepts[1])
    assert not same(concepts[0], concepts[2])


def test_previews_begin_at_pure_noise_and_the_base_keeps_its_scheduler(
    velocity: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, kept = [], []
    draw = dreambooth.draw

    def watch(base, *arguments):
        used.append(dict(base.scheduler.config))
        return draw(base, *arguments)

    finish = dreambooth.finish
    monkeypatch.setattr(dreambooth, "draw", watch)
    monkeypatch.setattr(
        dreambooth, "finish", lambda training, *rest: (kept.append(training.base), finish(training, *rest))[1]
    )
    train_concept(tiny_recipe(velocity, home, {"steps": 2, "sample_every": 2, "zero_terminal_snr": True}), home)
    assert {(one["rescale_betas_zero_snr"], one["timestep_spacing"]) for one in used} == {(True, "trailing")}
    assert len(used) == 4  # two prompts, before and after
    config = kept[0].scheduler.config
    assert (config.rescale_betas_zero_snr, config.timestep_spacing) == (False, "leading")


def test_file_and_card_say_it_and_the_cards_lines_draw_the_preview(velocity: Path, home: Home) -> None:
    changes = {"steps": 2, "sample_every": 2, "zero_terminal_snr": True, "sample_prompts": ("a sks cat",)}
    concept = train_concept(tiny_recipe(velocity, home, changes), home)
    with safe_open(concept.adapter_file, "pt") as file:
        notes = file.metadata()
    assert (notes["studio.zero_terminal_snr"], notes["ss_zero_terminal_snr"]) == ("True", "True")
    card = (concept.folder / "README.md").read_text()
    assert "| zero_terminal_snr | True |" in card
    assert '`rescale_betas_zero_snr: true` and `timestep_spacing: "trailing"`' in card
    code = card.partition("```python\n")[2].partition("```")[0]
    lines = [line for line in code.splitlines() if not line.startswith("pipe(")]
    made: dict = {}
    code = "\n".join(lines).replace('"adapter.safetensors"', repr(str(concept.adapter_file)))
    exec(code, made)
    pipe = made["pipe"]
    scheduler = pipe.scheduler
    assert isinstance(scheduler, diffusers.EulerDiscreteScheduler)
    drawn = pipe(
        "a sks cat", width=32, height=32, num_inference_steps=2, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    shown = Image.open(concept.folder / "samples" / "step-000002-0.png")
    assert scheduler.timesteps[0] == 999
    far = (torch.tensor(list(drawn.tobytes())) - torch.tensor(list(shown.tobytes()))).abs()
    assert int(far.max()) <= 2


def test_the_studio_draws_and_composes_what_the_preview_showed(velocity: Path, home: Home) -> None:
    changes = {"steps": 2, "sample_every": 2, "zero_terminal_snr": True, "sample_prompts": ("a sks cat",)}
    concept = train_concept(tiny_recipe(velocity, home, changes), home)
    shown = np.asarray(Image.open(concept.folder / "samples" / "step-000002-0.png"), float)
    base = load_base(find_base(str(velocity)), "cpu")
    settings = GenerateSettings("a <milo>", width=32, height=32, steps=2, guidance=5.0)
    for pictures in (
        generate(base, settings, [(concept, 1.0)], silent),
        compose(base, settings, [(concept, 1.0)], METHODS["auto"].make(), silent),
    ):
        assert np.abs(np.asarray(pictures[0], float) - shown).max() <= 2
    assert base.scheduler.config.timestep_spacing == "leading"
    for name, other in (("heun", "cannot"), ("dpm++2m-karras", "begins at pure noise there")):
        with pytest.raises(UsageError, match=other):
            generate(base, replace(settings, scheduler=name), [(concept, 1.0)], silent)


@pytest.mark.parametrize(
    "own",
    [
        diffusers.EulerDiscreteScheduler(prediction_type="epsilon"),
        diffusers.EDMEulerScheduler(prediction_type="v_prediction"),
    ],
)
def test_a_base_that_cannot_begin_there_draws_by_its_own_schedule(velocity: Path, own: Any) -> None:
    base = load_base(find_base(str(velocity)), "cpu")
    base.pipe.register_modules(scheduler=own)
    trained = Adapter("milo", "LoRA", None, {}, metadata={ZERO_SNR_NOTE: "True"})
    made = make_scheduler(base, "default", [trained])
    assert type(made) is type(own)
    assert not made.config.get("rescale_betas_zero_snr")


def test_steps_of_karras_are_not_inherited_where_drawing_begins_there(velocity: Path) -> None:
    base = load_base(find_base(str(velocity)), "cpu")
    base.pipe.register_modules(
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True)
    )
    trained = Adapter("milo", "LoRA", None, {}, metadata={ZERO_SNR_NOTE: "True"})
    for name in ("default", "euler", "dpm++2m"):
        config = make_scheduler(base, name, [trained]).config
        assert (config.rescale_betas_zero_snr, config.use_karras_sigmas) == (True, False)


def test_the_card_of_others_is_silent(tiny_sdxl: Path, home: Home) -> None:
    concept = train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 1}), home)
    card = (concept.folder / "README.md").read_text()
    assert "terminal" not in card
    assert "EulerDiscreteScheduler" not in card
    assert "--concept milo\n```\n\nWith diffusers alone:" in card


@pytest.mark.parametrize(
    ("base", "said"), [("tiny_sd15", "this one predicts 'epsilon'"), ("tiny_sdxl", "ends in pure noise already")]
)
def test_bases_that_it_does_not_suit_are_refused_while_planning(
    base: str, said: str, home: Home, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(base)
    with pytest.raises(UsageError, match=said):
        tiny_recipe(folder, home, {"zero_terminal_snr": True})
    with pytest.raises(UsageError, match=said):
        noise_schedule(load_base(find_base(str(folder)), "cpu"), zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("marks", "expected"),
    [((), {}), (("v_pred",), ("v_prediction", False)), (("v_pred", "ztsnr"), ("v_prediction", True))],
)
def test_a_single_file_says_what_it_predicts(tmp_path: Path, marks: tuple, expected: tuple | dict) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(0) for name in (*marks, "x")}, file)
    found = scheduler_config(BaseSource("model", str(file), "single-file", "sdxl"))
    assert (found and (found["prediction_type"], found["rescale_betas_zero_snr"])) == expected


def test_a_base_of_the_hub_that_is_not_at_hand_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="predicts is neither in the hub's cache nor") as refusal:
        scheduler_config(BaseSource("x/y", "x/y", "hub", "sdxl"))
    assert "huggingface-cli download x/y scheduler/scheduler_config.json" in refusal.value.remedy
