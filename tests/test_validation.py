import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from training_helpers import Halt, draw_pictures, halting, same, tiny_recipe, weights

from studio.bases import find_base
from studio.errors import UsageError
from studio.events import Event, Notice, Validation, silent
from studio.home import Home
from studio.images import find_pictures
from studio.models import load_base
from studio.trainers.captions import pictures_of
from studio.trainers.dreambooth import _prepare, train_concept
from studio.trainers.validation import Measured, best, divided, fixed_samples, validation_loss


def test_the_loss_of_the_untrained_is_that_of_plain_diffusers(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"held_out": 1})
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    training, _ = _prepare(base, recipe, pictures_of(recipe), home, silent, true_sizes=True)
    (sample,) = fixed_samples(training)
    assert len(sample.noise) == 8
    unet = diffusers.UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")
    scheduler = diffusers.DDPMScheduler.from_config(base.scheduler.config)
    batch, expected = sample.batch, 0.0
    assert batch.pooled is not None
    assert batch.time_ids is not None
    for n, time in enumerate(range(62, 1000, 125)):
        at = torch.tensor([time])
        noisy = scheduler.add_noise(batch.latents[n : n + 1], sample.noise[n : n + 1], at)  # pyright: ignore
        added = {"text_embeds": batch.pooled[n : n + 1], "time_ids": batch.time_ids[n : n + 1]}
        with torch.no_grad():
            said = unet(noisy, at, batch.embeds[n : n + 1], added_cond_kwargs=added).sample
        target = scheduler.get_velocity(batch.latents[n : n + 1], sample.noise[n : n + 1], at)  # pyright: ignore
        expected += float((said - target).square().mean()) / 8
    assert validation_loss(training, [sample]) == pytest.approx(expected, rel=1e-5)


def test_what_is_held_out_is_not_trained_on(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"held_out": 1, "prior_preservation": False})
    pictures = find_pictures(recipe.pictures)
    kept, aside = divided(pictures, recipe)
    assert len(kept) == 2
    assert sorted(one.path for one in kept + aside) == [one.path for one in pictures]
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    training, _ = _prepare(base, recipe, [pictures], home, silent, true_sizes=True)
    assert len(training.instances) == 2
    assert training.held is not None
    assert len(training.held) == 1


def test_measuring_keeps_adapters_and_touches_nothing(tiny_sdxl: Path, homes: list[Home]) -> None:
    plain = train_concept(tiny_recipe(tiny_sdxl, homes[0]), homes[0])
    events: list[Event] = []
    measured = train_concept(tiny_recipe(tiny_sdxl, homes[1], {"validate_every": 2}), homes[1], events.append)
    assert same(plain, measured)
    assert [event.step for event in events if isinstance(event, Validation)] == [0, 2, 4, 6]
    told = json.loads((measured.folder / "validation.json").read_text())
    losses = {one["step"]: one["loss"] for one in told["measured"] if one["step"]}
    assert told["recommended"] == min(losses, key=losses.__getitem__)
    assert any(isinstance(one, Notice) and f"Recommended: step {told['recommended']}" in one.message for one in events)
    files = sorted((measured.folder / "steps").iterdir())
    assert [file.stem for file in files] == ["step-000002", "step-000004", "step-000006"]
    last, own = load_file(files[-1]), weights(measured)
    assert all(torch.equal(last[name], own[name]) for name in own)


def test_a_resumed_training_measures_as_one_that_was_not(tiny_sdxl: Path, homes: list[Home]) -> None:
    changes = {"validate_every": 2, "save_every": 2, "held_out": 1}
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], changes), homes[0])

    recipe = tiny_recipe(tiny_sdxl, homes[1], changes)
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(5))
    resumed = train_concept(recipe, homes[1], resume=True)
    one, other = ((concept.folder / "validation.json").read_text() for concept in (straight, resumed))
    assert one == other


def test_the_earliest_of_equals_is_recommended_and_never_the_base() -> None:
    assert best([Measured(0, 0.1), Measured(2, 0.3), Measured(4, 0.2), Measured(6, 0.2)]) == Measured(4, 0.2)


def test_nothing_left_to_learn_from_is_refused_at_once(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.trainers.dreambooth.load_base", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UsageError, match="held_out is 3 of 3 pictures"):
        train_concept(tiny_recipe(tiny_sdxl, home, {"held_out": 3}), home)


def test_pictures_are_held_out_by_the_seed(tmp_path: Path, tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"held_out": 2})
    pictures = find_pictures(draw_pictures(tmp_path / "many", 9))
    found = {
        tuple(one.path.name for one in divided(pictures, recipe.model_copy(update={"seed": seed}))[1])
        for seed in range(9)
    }
    assert len(found) > 3
    assert divided(pictures, recipe) == divided(pictures, recipe)
