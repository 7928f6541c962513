"""A training that was interrupted goes on as if it had not been."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from training_helpers import Halt, draw_pictures, halting, same, tiny_recipe

from studio.adapters import load_concept
from studio.bases import find_base
from studio.errors import UsageError
from studio.events import Event, Loss, Notice, Preview, Validation, silent
from studio.home import Home
from studio.library import Library
from studio.models import load_base
from studio.trainers.captions import pictures_of
from studio.trainers.dreambooth import _prepare, train_concept
from studio.trainers.planning import resumed_recipe
from studio.trainers.stopping import Stopped
from studio.trainers.workplace import workplace_of


def test_resuming_gives_the_same_weights_bit_for_bit(tiny_sdxl: Path, homes: list[Home]) -> None:
    changes = {"save_every": 3, "schedule": "cosine", "warmup_steps": 2, "dropout": 0.2, "noise_offset": 0.1}
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], changes), homes[0])
    recipe = tiny_recipe(tiny_sdxl, homes[1], changes)
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(5))
    assert Library(homes[1]).concepts() == []
    told: list[Event] = []
    resumed = train_concept(recipe, homes[1], told.append, resume=True)
    assert Notice("Going on after step 3 of 6.") in told
    assert same(straight, resumed)


def test_a_damaged_checkpoint_costs_its_steps_only(tiny_sdxl: Path, homes: list[Home]) -> None:
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0]), homes[0])
    recipe = tiny_recipe(tiny_sdxl, homes[1], {"save_every": 2})
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(5))
    newest = workplace_of(homes[1], "milo").checkpoints / "step-000004" / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    told: list[str] = []
    emit = lambda event: told.append(event.message) if isinstance(event, Notice) else None  # noqa: E731
    assert same(straight, train_concept(recipe, homes[1], emit, resume=True))
    assert any("step-000004 is damaged" in line for line in told)
    assert "Going on after step 2 of 6." in told


def test_an_interrupted_training_is_neither_forgotten_nor_mixed_up(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"save_every": 2})
    with pytest.raises(Halt):
        train_concept(recipe, home, halting(3))
    with pytest.raises(UsageError, match="was interrupted"):
        train_concept(recipe, home)
    with pytest.raises(UsageError, match="rank: 2 -> 3"):
        train_concept(recipe.model_copy(update={"rank": 3}), home, resume=True)
    draw_pictures(recipe.pictures, 4)
    with pytest.raises(UsageError, match="have changed"):
        train_concept(recipe, home, resume=True)
    elsewhere = recipe.model_copy(update={"pictures": draw_pictures(home.root / "others", 2)})
    with pytest.raises(UsageError, match="have changed"):
        train_concept(elsewhere, home, resume=True)
    assert resumed_recipe({"name": "milo"}, None, home) == recipe
    (recipe.pictures / "3.png").unlink()
    assert train_concept(recipe, home, resume=True).name == "milo"


def test_an_interrupted_training_ends_no_earlier_than_it_is(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"save_every": 2})
    with pytest.raises(Halt):
        train_concept(recipe, home, halting(5))
    with pytest.raises(UsageError, match="steps is 3, and 4 are done"):
        train_concept(recipe.model_copy(update={"steps": 3}), home, resume=True)
    finished = train_concept(recipe.model_copy(update={"steps": 4}), home, resume=True)
    assert "ss_steps" in (found := load_concept(finished).metadata)
    assert found["ss_steps"] == "4"


def test_another_type_of_number_is_named_and_not_the_pictures(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"save_every": 2})
    with pytest.raises(Halt):
        train_concept(recipe, home, halting(3))
    for manifest in workplace_of(home, "milo").checkpoints.glob("*/manifest.json"):
        manifest.write_text(manifest.read_text().replace("torch.float32", "torch.bfloat16"))
    with pytest.raises(UsageError, match=r"computed in torch\.bfloat16") as refused:
        train_concept(recipe, home, resume=True)
    assert "--device" in refused.value.remedy


def test_previews_of_other_words_and_of_lost_steps_do_not_stay(tiny_sdxl: Path, home: Home) -> None:
    every = {"sample_every": 1, "save_every": 2, "prior_preservation": False}
    first = tiny_recipe(tiny_sdxl, home, every | {"sample_prompts": ("a sks cat", "a cat")})
    with pytest.raises(Halt):
        train_concept(first, home, halting(4))  # step 3 was shown, and is lost
    samples = workplace_of(home, "milo").samples
    kept = samples / "step-000001-0.png"
    before = kept.stat().st_mtime_ns, (samples / "step-000003-0.png").stat().st_mtime_ns
    second = tiny_recipe(tiny_sdxl, home, every | {"sample_prompts": ("a sks cat", "a sks cat at night")})
    done = train_concept(second, home, resume=True).folder / "samples"
    assert (done / kept.name).stat().st_mtime_ns == before[0]
    assert (done / "step-000003-0.png").stat().st_mtime_ns > before[1]
    assert [path.name for path in sorted(done.glob("*-1.png"))] == [f"step-00000{n}-1.png" for n in (2, 3, 4, 5, 6)]


@pytest.mark.parametrize("killed", [Preview, Validation])
def test_what_was_killed_while_it_showed_a_step_shows_it_afterwards(
    killed: type[Preview | Validation], tiny_sdxl: Path, homes: list[Home]
) -> None:
    every = {"sample_every": 2, "validate_every": 2, "save_every": 2, "sample_prompts": ("a sks cat",)}

    def kill(event: Event) -> None:
        if isinstance(event, killed) and event.step == 4:
            raise Halt

    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], every), homes[0])
    recipe = tiny_recipe(tiny_sdxl, homes[1], every)
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], kill)
    shutil.rmtree(workplace_of(homes[1], "milo").samples)  # the kill came before the file
    (workplace_of(homes[1], "milo").folder / "steps" / "step-000004.safetensors").unlink(missing_ok=True)
    resumed = train_concept(recipe, homes[1], resume=True)
    assert (resumed.folder / "validation.json").read_text() == (straight.folder / "validation.json").read_text()
    assert (resumed.folder / "samples" / "step-000004-0.png").is_file()


def test_how_to_go_on_says_all_that_was_said(tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDIO_HOME", raising=False)
    recipe = tiny_recipe(tiny_sdxl, home)

    def interrupt(event: Event) -> None:
        if isinstance(event, Loss):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped) as stop:
        train_concept(recipe, home, interrupt, device="cpu", export=("kohya",))
    assert stop.value.remedy.endswith(f"--resume --home {home.root} --device cpu --export kohya")


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tiny_sdxl: Path, homes: list[Home]) -> None:
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0]), homes[0])
    recipe = tiny_recipe(tiny_sdxl, homes[1])
    usual = signal.getsignal(signal.SIGINT)

    def interrupt(event: Event) -> None:
        if isinstance(event, Loss) and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="after step 2 of 6") as stop:
        train_concept(recipe, homes[1], interrupt)
    assert stop.value.exit_code == 130
    assert "--name milo --resume" in stop.value.remedy
    assert signal.getsignal(signal.SIGINT) is usual
    assert same(straight, train_concept(recipe, homes[1], resume=True))


def test_the_loss_scale_of_float16_is_part_of_the_state(tiny_sdxl: Path, homes: list[Home]) -> None:
    states = []
    for home, scale in zip(homes[:2], (512.0, 4.0), strict=True):
        training, _ = _prepare(
            load_base(find_base(str(tiny_sdxl)), "cpu"),
            recipe := tiny_recipe(tiny_sdxl, home, {"prior_preservation": False}),
            pictures_of(recipe), home, silent, true_sizes=True,
        )  # fmt: skip
        training.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        training.take_step()
        states.append(training)
    states[1].restore(states[0].state())
    assert states[1].accelerator.scaler.state_dict() == states[0].accelerator.scaler.state_dict()
    assert states[1].accelerator.scaler.state_dict()["scale"] == 512.0
