import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import Halt, halting, same, tiny_recipe

from studio.bases import find_base
from studio.errors import UsageError
from studio.events import silent
from studio.home import Home
from studio.models import load_base
from studio.trainers import checkpoint, optimizer_choice
from studio.trainers.captions import pictures_of
from studio.trainers.dreambooth import _prepare, train_concept
from studio.trainers.optimizers import Part, check_optimizer, make_optimizer, optimizer_tensors, restore_optimizer
from studio.trainers.planning import plan_recipe, resumed_recipe
from studio.trainers.recipe import write_toml
from studio.trainers.training import Training
from studio.trainers.workplace import workplace_of

PACKAGES = {"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt", "adamw-schedule-free": "schedulefree"}
NAMES = ["adamw", "adafactor", *PACKAGES]
WIDE: dict[str, Any] = {"new_word": True, "trigger": "milo0", "text_rank": 2, "prior_preservation": False}
SHORT = WIDE | {"steps": 4, "save_every": 2, "batch_size": 1, "sample_prompts": ("a cat",)}


@pytest.fixture(params=NAMES)
def optimizer(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of a training with each optimiser whose package is there."""
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param])
    rates = {"learning_rate": 1.0, "word_learning_rate": 1.0, "text_learning_rate": 1.0}
    return {"optimizer": request.param} | (rates if request.param == "prodigy" else {})


def prepared(base: Path, home: Home, changes: dict[str, Any]) -> Training:
    recipe = tiny_recipe(base, home, changes)
    loaded = load_base(find_base(str(base)), "cpu")
    return _prepare(loaded, recipe, pictures_of(recipe), home, silent, true_sizes=True)[0]


def copies(training: Training) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in training.parameters.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_resumes_bit_for_bit_and_previews_leave_no_trace(
    tiny_sdxl: Path, homes: list[Home], optimizer: dict[str, Any]
) -> None:
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], SHORT | optimizer), homes[0])
    recipe = tiny_recipe(tiny_sdxl, homes[1], SHORT | optimizer | {"sample_every": 2})
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(3))
    assert same(straight, train_concept(recipe, homes[1], resume=True))


def test_an_average_and_two_rates_resume_bit_for_bit(tiny_sdxl: Path, homes: list[Home]) -> None:
    changes = SHORT | {"ema": 0.9, "up_rate_ratio": 4.0, "sample_every": 2}
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], changes), homes[0])
    recipe = tiny_recipe(tiny_sdxl, homes[1], changes | {"sample_every": 0})
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(3))
    assert same(straight, train_concept(recipe, homes[1], resume=True))


def _alone(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The package's own optimiser, as its authors advise for such a training."""
    betas = (0.9, 0.999)
    if name == "adafactor":
        return import_module("transformers").Adafactor(groups, scale_parameter=False, relative_step=False)
    if name == "prodigy":
        kind = import_module("prodigyopt").Prodigy
        return kind(groups, betas=betas, use_bias_correction=True, safeguard_warmup=True)
    if name == "adamw-8bit":
        return import_module("bitsandbytes").optim.AdamW8bit(groups, betas=betas)
    if name == "adamw-schedule-free":
        return import_module("schedulefree").AdamWScheduleFree(groups, betas=betas)
    return torch.optim.AdamW(groups, betas=betas, fused=True)


def test_a_training_is_what_the_package_makes_of_its_gradients(
    tiny_sdxl: Path, home: Home, optimizer: dict[str, Any]
) -> None:
    training = prepared(tiny_sdxl, home, WIDE | optimizer | {"weight_decay": 0.1})
    plain = {name: torch.nn.Parameter(one) for name, one in copies(training).items()}
    rates = training.recipe
    groups = [
        {"params": [], "lr": rates.learning_rate, "weight_decay": 0.1},
        {"params": [], "lr": rates.text_learning_rate, "weight_decay": 0.1},
        {"params": [], "lr": rates.word_learning_rate, "weight_decay": 0.0},
    ]
    for name, one in plain.items():
        groups[2 if name.startswith("word.") else 1 if name.startswith("text_encoder") else 0]["params"].append(one)
    alone: Any = _alone(optimizer["optimizer"], groups)
    free = optimizer["optimizer"] == "adamw-schedule-free"
    if free:
        alone.train()

    def follow(*_: object) -> None:  # the gradients as they are when the training's own optimiser begins
        for name, one in training.parameters.items():
            plain[name].grad = None if one.grad is None else one.grad.clone()
        alone.step()

    training.plain_optimizer.register_step_pre_hook(follow)
    for _ in range(4):
        training.take_step()
    if free:
        alone.eval()
    with training.averaged():
        shown = copies(training)
    assert equal(shown, {name: one.detach() for name, one in plain.items()})


def test_every_group_moves_at_its_own_rate(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"up_rate_ratio": 8.0, "weight_decay": 0.1})
    drawn = torch.Generator().manual_seed(0)
    names = ("a.lora_A.weight", "a.lora_B.weight", "a.lora_magnitude_vector.weight")
    parameters = {name: torch.nn.Parameter(torch.randn(5, 4, generator=drawn)) for name in names}
    word = {"word.clip_l": torch.nn.Parameter(torch.randn(4, generator=drawn))}
    before = {name: one.detach().double() for name, one in (parameters | word).items()}
    for one in (*parameters.values(), *word.values()):
        one.grad = torch.randn(one.shape, generator=drawn)
    make_optimizer(recipe, [Part(parameters, 0.01, 0.1), Part(word, 0.002, 0.0)]).step()
    for name, one in (parameters | word).items():
        rate = 0.002 if name == "word.clip_l" else 0.08 if name == "a.lora_B.weight" else 0.01
        decay = 0.0 if name == "word.clip_l" else 0.1
        assert one.grad is not None
        grad = one.grad.double()
        expected = before[name] * (1 - rate * decay) - rate * grad / (grad.abs() + 1e-8)  # both moments are unbiased
        torch.testing.assert_close(one.detach().double(), expected, atol=1e-6, rtol=1e-5)


def test_adafactor_takes_the_step_of_the_paper(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"optimizer": "adafactor"})
    drawn = np.random.default_rng(0)
    w, grads = drawn.normal(size=(6, 4)), drawn.normal(size=(3, 6, 4))
    one = torch.nn.Parameter(torch.tensor(w, dtype=torch.float32))
    adafactor = make_optimizer(recipe, [Part({"w": one}, 0.01, 0.1)])
    rows, columns = np.zeros(6), np.zeros(4)
    for step, grad in enumerate(grads, 1):
        one.grad = torch.tensor(grad, dtype=torch.float32)
        adafactor.step()
        kept = 1 - step**-0.8
        rows = kept * rows + (1 - kept) * (grad**2).sum(1)
        columns = kept * columns + (1 - kept) * (grad**2).sum(0)
        update = grad / np.sqrt(np.outer(rows, columns) / rows.sum())
        update /= max(1.0, float(np.sqrt((update**2).mean())))
        w = w - 0.01 * 0.1 * w - 0.01 * update
    np.testing.assert_allclose(one.detach().numpy(), w, atol=1e-5)


def test_the_ups_move_faster_and_are_clipped_with_the_downs(tiny_sdxl: Path, homes: list[Home]) -> None:
    grads: list[dict[str, torch.Tensor]] = []
    moved: list[float] = []
    for home, ratio in zip(homes, (1.0, 16.0), strict=True):
        changes = {"up_rate_ratio": ratio, "max_grad_norm": 1e-3, "learning_rate": 1e-3}
        training = prepared(tiny_sdxl, home, changes)

        def keep(*_: object, training: Training = training) -> None:
            grads.append({name: one.grad.clone() for name, one in training.parameters.items() if one.grad is not None})

        training.plain_optimizer.register_step_pre_hook(keep)
        training.take_step()
        moved.append(
            max(float(one.detach().abs().max()) for name, one in training.parameters.items() if ".lora_B." in name)
        )
    assert equal(*grads)
    norm = torch.cat([grad.flatten() for grad in grads[1].values()]).double().norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert moved == pytest.approx([1e-3, 16e-3], rel=0.01)


def test_schedule_free_shows_the_mean_of_where_it_has_been(tiny_sdxl: Path, home: Home) -> None:
    pytest.importorskip("schedulefree")
    training = prepared(tiny_sdxl, home, {"optimizer": "adamw-schedule-free"})
    seen: list[dict[str, torch.Tensor]] = []
    for _ in range(3):
        training.take_step()
        seen.append({n: training.plain_optimizer.state[one]["z"].double() for n, one in training.parameters.items()})
    before = training.state()
    with training.averaged():
        shown = copies(training)
    assert equal(before, training.state())
    for name, one in shown.items():
        torch.testing.assert_close(one.double(), sum(z[name] for z in seen) / 3, atol=1e-6, rtol=1e-5)


def test_what_a_checkpoint_of_adamw_holds(tiny_sdxl: Path, home: Home) -> None:
    training = prepared(tiny_sdxl, home, {})
    training.take_step()
    kinds = {name.partition("/")[0] for name in training.state()}
    assert kinds == {"losses", "weight", "step", "exp_avg", "exp_avg_sq"}
    assert len(training.state()) == 1 + 4 * len(training.parameters)


def test_a_checkpoint_from_before_there_were_such_settings_goes_on(tiny_sdxl: Path, homes: list[Home]) -> None:
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], {"save_every": 2}), homes[0])
    with pytest.raises(Halt):
        train_concept(tiny_recipe(tiny_sdxl, homes[1], {"save_every": 2}), homes[1], halting(3))
    place = workplace_of(homes[1], "milo")
    manifest = place.checkpoints / "step-000002" / "manifest.json"
    told = json.loads(manifest.read_text())
    for key in ("optimizer", "up_rate_ratio", "ema"):
        del told["recipe"][key]
    manifest.write_text(json.dumps(told))
    found = checkpoint.latest_checkpoint(place.checkpoints, pytest.fail)
    assert found is not None
    with pytest.raises(UsageError, match=r"ema: 0.0 -> 0.5"):
        checkpoint.check_same_training(found, tiny_recipe(tiny_sdxl, homes[1], {"save_every": 2, "ema": 0.5}))
    assert same(straight, train_concept(resumed_recipe({"name": "milo"}, None, homes[1]), homes[1], resume=True))


def test_numbers_and_tensors_come_back_as_what_they_were() -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    parameters = {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.zeros(2))}
    made = [prodigyopt.Prodigy(parameters.values()) for _ in range(2)]
    for one in parameters.values():
        one.grad = torch.ones_like(one)
    for _ in range(3):
        made[0].step()
    restore_optimizer(made[1], parameters, optimizer_tensors(made[0], parameters))
    for one in parameters.values():
        kinds = [{key: (type(value), value) for key, value in each.state[one].items()} for each in made]
        assert str(kinds[0]) == str(kinds[1])
    assert all(made[0].param_groups[0][key] == made[1].param_groups[0][key] for key in ("d", "d_max", "k"))


def test_prodigy_says_nothing_on_the_standard_output(
    tiny_sdxl: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prodigyopt")
    recipe = tiny_recipe(tiny_sdxl, home, {"optimizer": "prodigy", "learning_rate": 1.0, "weight_decay": 0.1})
    made = make_optimizer(recipe, [Part({"w": torch.nn.Parameter(torch.ones(3))}, 1.0, 0.1)])
    assert made.param_groups[0]["weight_decay"] == 0.1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_a_missing_package_is_named_while_planning(
    name: str, package: str, tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer_choice, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=f"{name} is in the package {package}, which is not installed") as refusal:
        tiny_recipe(tiny_sdxl, home, {"optimizer": name, "learning_rate": 1.0, "new_word": False})
    assert refusal.value.remedy == 'pip install "concept-studio[optimizers]"'
    recipe = tiny_recipe(tiny_sdxl, home).model_copy(update={"optimizer": name})
    with pytest.raises(UsageError, match="not installed"):
        train_concept(recipe, home)


def test_eight_bits_are_refused_where_they_do_not_run(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def refuse(self: object) -> None:
        raise NotImplementedError("There is no such kernel.")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", refuse)
    recipe = tiny_recipe(tiny_sdxl, home, {"optimizer": "adamw-8bit"})
    with pytest.raises(UsageError, match=r"does not run on cpu here: There is no such kernel\.") as refusal:
        check_optimizer(recipe, torch.device("cpu"))
    assert "--optimizer adafactor" in refusal.value.remedy


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; it must be one of"),
        ({"optimizer": "prodigy", "new_word": True, "word_learning_rate": 0.1}, "prodigy knows one rate"),
        ({"optimizer": "prodigy", "text_rank": 2, "text_learning_rate": 0.1}, "prodigy knows one rate"),
        ({"optimizer": "prodigy", "up_rate_ratio": 2.0}, "and up_rate_ratio 1"),
        ({"optimizer": "adamw-schedule-free", "schedule": "cosine"}, "and schedule is cosine"),
        ({"optimizer": "adamw-schedule-free", "ema": 0.9}, "averages the weights itself"),
        ({"optimizer": "adamw-schedule-free", "betas": (0.0, 0.9)}, "first beta above 0"),
        ({"optimizer": "adafactor", "betas": (0.9, 0.9)}, "betas says nothing to the optimizer adafactor"),
        ({"method": "krona", "factors": (2, 2), "up_rate_ratio": 2.0}, "says nothing to the method krona"),
        ({"ema": 1.0}, "ema is 1.0; it must be less than 1"),
        ({"up_rate_ratio": 0.0}, "up_rate_ratio is 0.0; it must be more than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_sdxl: Path, home: Home, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tiny_recipe(tiny_sdxl, home, changes)


GIVEN = {"name": "milo", "class_word": "cat", "pictures": "pictures"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"learning_rate": 1e-4, "schedule": "cosine", "warmup_steps": 40}),
        (
            {"optimizer": "prodigy"},
            {"learning_rate": 1, "word_learning_rate": 1, "text_learning_rate": 1, "schedule": "constant"}
            | {"warmup_steps": 0},
        ),
        ({"optimizer": "prodigy", "learning_rate": 0.5, "schedule": "cosine"}, {"word_learning_rate": 0.5}),
        ({"optimizer": "adamw-schedule-free"}, {"learning_rate": 1e-4, "schedule": "constant", "warmup_steps": 40}),
        ({"optimizer": "adafactor"}, {"learning_rate": 1e-4, "schedule": "cosine"}),
    ],
)
def test_an_optimizer_brings_its_settings(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    monkeypatch.setattr(optimizer_choice, "find_spec", lambda package: package)
    recipe = plan_recipe(GIVEN | {"base": str(tiny_sdxl)} | given, None, home)
    assert {key: getattr(recipe, key) for key in expected} == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adafactor"},
        {"optimizer": "prodigy"},
        {"method": "krona", "factors": (2, 2)},
        {"method": "b-lora"},
    ],
)
def test_a_finished_recipe_plans_the_same_again(
    tiny_sdxl: Path, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(optimizer_choice, "find_spec", lambda package: package)
    recipe = plan_recipe(GIVEN | {"base": str(tiny_sdxl)} | changes, None, home)
    config = tmp_path / "recipe.toml"
    write_toml(recipe, config)
    assert plan_recipe({}, config, home) == recipe


def test_the_command_takes_it(run_studio: Callable[..., Any], tiny_sdxl: Path, home: Home, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"steps": 1, "prior_preservation": False})
    config = tmp_path / "recipe.toml"
    write_toml(recipe, config)
    ended = run_studio("train-concept", "--config", config, "--optimizer", "adafactor", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["recipe"]["optimizer"] == "adafactor"
    again = run_studio("train-concept", "--config", home.library / "milo" / "recipe.toml", "--overwrite")
    assert again.code == 0
