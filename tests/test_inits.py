from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from soaking import soaked
from test_krona import WIDE, predicted
from torch import nn
from training_helpers import same, tiny_recipe

from studio.adapters import load_concept
from studio.attaching import attach
from studio.errors import UsageError
from studio.events import Event, Notice, Phase, Step, silent
from studio.home import Home
from studio.models import BaseModel, find_base, load_base
from studio.trainers.captions import pictures_of
from studio.trainers.dreambooth import _prepare, train_concept
from studio.trainers.inits import PASSES, first_pair, pair_of_gradient
from studio.trainers.training import Training

NOT_CHANCE = ("orthogonal", "pissa", "olora", "eva", "lora-ga")
KINDS = ({"dora": True}, {"rank_stabilised": True}, {"dropout": 0.3})
MIXED = [(one, {}) for one in ("default", *NOT_CHANCE)] + [
    ("pissa", KINDS[0]),
    *(pytest.param(*one, marks=soaked) for one in (("pissa", KINDS[1]), ("pissa", KINDS[2]), ("lora-ga", KINDS[0]))),
]


def prepared(folder: Path, home: Home, changes: dict[str, Any]) -> Training:
    recipe = tiny_recipe(folder, home, changes)
    base = load_base(find_base(str(folder)), "cpu")
    return _prepare(base, recipe, pictures_of(recipe), home, silent, true_sizes=True)[0]


def layers_of(base: BaseModel) -> dict[str, Any]:
    return {name: one for name, one in base.unet.named_modules() if isinstance(one, LoraLayer)}


def pair_of(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(down [r, n], up [out, r]) of what is trained of `layer`."""
    parts = (layer.lora_A["default"], layer.lora_B["default"])
    divided = hasattr(parts[0], "parametrizations")
    down, up = (one.parametrizations.weight.original if divided else one.weight for one in parts)
    return down.detach().flatten(1), up.detach().flatten(1)


@pytest.mark.parametrize(("init", "kind"), MIXED)
def test_plain_diffusers_loads_the_file_on_the_untouched_base(
    init: str, kind: dict, tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Training] = []
    prepare = Training.__post_init__
    monkeypatch.setattr(Training, "__post_init__", lambda self: (prepare(self), trained.append(self))[0])
    told: list[Event] = []
    more = {"steps": 2, "alpha": 5.0, "targets": WIDE, "init": init} | kind
    concept = train_concept(tiny_recipe(tiny_sdxl, home, more), home, told.append)
    live, tuner = trained[0].base, trained[0].tuner
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny_sdxl)
    fresh = load_base(find_base(str(tiny_sdxl)), "cpu")
    alone, learned = predicted(fresh), predicted(live)
    assert (learned - alone).abs().max() > 1e-3
    pipe.load_lora_weights(concept.adapter_file)
    torch.testing.assert_close(predicted(pipe), learned, atol=1e-5, rtol=1e-5)
    with attach(fresh, [(load_concept(concept), 1.0)]):
        torch.testing.assert_close(predicted(fresh), learned, atol=1e-5, rtol=1e-5)
    with tuner.without():
        assert torch.equal(predicted(live), alone)
    twice = init in ("pissa", "olora", "lora-ga")
    said = next(one.message for one in told if isinstance(one, Notice) and "parameters" in one.message)
    assert f"begun as {init}{' (of rank 4 in its file)' if twice else ''}: " in said
    assert pipe.unet.peft_config["default_0"].r == (4 if twice else 2)
    assert f"{sum(one.numel() for one in tuner.parameters.values()):,} parameters" in said


@pytest.mark.parametrize("folder", ["tiny_sdxl", "tiny_sd15"])
@pytest.mark.parametrize("init", NOT_CHANCE)
def test_at_first_it_is_nothing(init: str, folder: str, home: Home, request: pytest.FixtureRequest) -> None:
    at = request.getfixturevalue(folder)
    training = prepared(at, home, {"init": init, "targets": WIDE})
    fresh = load_base(find_base(str(at)), "cpu")
    torch.testing.assert_close(predicted(training.base), predicted(fresh), atol=1e-5, rtol=1e-5)
    for name, layer in layers_of(training.base).items():
        own: Any = layer.get_base_layer().weight
        assert torch.equal(own, fresh.unet.get_submodule(name).weight)  # pyright: ignore
        assert not own.requires_grad
        down, up = pair_of(layer)
        assert down.any()
        assert up.any() == (init != "eva")


@pytest.mark.parametrize("alpha", [2, 6])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_inits_from_the_weight_are_pefts(init: str, alpha: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(linear := nn.Linear(7, 9))
    weight = linear.weight.detach().clone()
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["0"], init_lora_weights=init)  # pyright: ignore
    layer: Any = inject_adapter_in_model(config, net)[0]  # pyright: ignore
    down, up = first_pair(init, weight, 2, alpha / 2, torch.Generator())
    torch.testing.assert_close(up @ down, (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach())
    torch.testing.assert_close(weight - alpha / 2 * up @ down, layer.get_base_layer().weight.detach())


def test_orthogonal_halves_do_not_meet() -> None:
    down, up = first_pair("orthogonal", torch.empty(40, 60), 6, 1.0, torch.Generator().manual_seed(1))
    assert (up @ down).abs().max() < 1e-6
    assert torch.linalg.matrix_rank(down) == torch.linalg.matrix_rank(up) == 3
    assert down.std().item() == pytest.approx(0.1 * 0.5**0.5, rel=0.2)


def test_chance_is_as_it_is_called(tiny_sdxl: Path, home: Home) -> None:
    for init, deviation in (("gaussian", lambda n: 1 / 8), ("default", lambda n: (3 * n) ** -0.5)):
        recipe = {"init": init, "rank": 8, "targets": ("to_q", "conv1")}
        for layer in layers_of(prepared(tiny_sdxl, home, recipe).base).values():
            down, up = pair_of(layer)
            assert down.std().item() == pytest.approx(deviation(down.shape[1]), rel=0.3)
            assert not up.any()


def first_loss(training: Training, step: int) -> torch.Tensor:
    """Of the pictures and class pictures of `step`, two each."""
    return training.loss(training.draw(step)[0].part([0, 1, 2, 3], training.base.device))


def test_eva_begins_with_the_principal_inputs(tiny_sdxl: Path, home: Home) -> None:
    wide = {"targets": WIDE, "rank": 2}
    plain = prepared(tiny_sdxl, home, wide)
    seen: dict[str, list[torch.Tensor]] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].double()
            if isinstance(module, nn.Conv2d):  # by a convolution whose kernels each pick one number of the patch
                n = module.weight[0].numel()
                x = nn.functional.conv2d(
                    x, torch.eye(n).double().view(n, *module.weight.shape[1:]), None, module.stride, module.padding
                ).movedim(1, -1)  # pyright: ignore
            seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))

        return keep

    for name, layer in layers_of(plain.base).items():
        layer.get_base_layer().register_forward_pre_hook(keeper(name))
    with torch.no_grad():
        for step in range(PASSES):
            first_loss(plain, step)
    for name, layer in layers_of(prepared(tiny_sdxl, home, wide | {"init": "eva"}).base).items():
        rows = torch.cat(seen[name])
        _, values, right = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        down, _ = pair_of(layer)
        torch.testing.assert_close(down @ down.T, torch.eye(2), atol=1e-5, rtol=0.0)
        kept = ((rows - rows.mean(0)) @ down.double().T).square().sum()
        assert kept == pytest.approx(values[:2].square().sum().item(), rel=1e-4)
        assert right.shape[1] == down.shape[1]


def test_lora_ga_begins_with_the_gradient(tiny_sdxl: Path, home: Home) -> None:
    wide = {"targets": WIDE, "rank": 2}
    plain = prepared(tiny_sdxl, home, wide)
    weights = {name: layer.get_base_layer().weight for name, layer in layers_of(plain.base).items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    for step in range(PASSES):
        first_loss(plain, step).backward()
    compared = 0
    for name, layer in layers_of(prepared(tiny_sdxl, home, wide | {"init": "lora-ga"}).base).items():
        gradient = weights[name].grad.double().flatten(1)
        left, values, right = torch.linalg.svd(gradient)
        if (values[:4] / values[1:5]).min() < 1.05:  # two directions as strong as each other are any two
            continue
        size = len(gradient) ** 0.5 / 16
        down, up = pair_of(layer)
        wanted = [(size * one @ one.T).float() for one in (right[:2].T, left[:, 2:4])]
        torch.testing.assert_close(down.T @ down, wanted[0], atol=2e-3 * size, rtol=0.0)
        torch.testing.assert_close(up @ up.T, wanted[1], atol=2e-3 * size, rtol=0.0)
        compared += 1
    assert compared > len(weights) // 2


def test_lora_ga_of_a_known_gradient() -> None:
    basis = [torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(n))).Q for n in (16, 9)]
    values = torch.tensor([5.0, 4, 3, 2, 1, 0.5, 0.4, 0.3, 0.2])
    down, up = pair_of_gradient(basis[0][:, :9] @ torch.diag(values) @ basis[1].T, 2)
    assert down.norm(dim=1).tolist() == pytest.approx([0.5, 0.5])  # 16^(1/4) / 4
    assert (down @ basis[1]).abs().argmax(1).tolist() == [0, 1]
    assert (basis[0].T @ up).abs().argmax(0).tolist() == [2, 3]


@pytest.mark.parametrize("init", [pytest.param("pissa", marks=soaked), pytest.param("eva", marks=soaked), "lora-ga"])
def test_resuming_is_exact(init: str, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what is made at the start comes out otherwise, as on another machine."""
    homes = [Home(tmp_path / name) for name in "ab"]
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], {"init": init}), homes[0])

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5 and event.total == 6:
            raise RuntimeError

    recipe = tiny_recipe(tiny_sdxl, homes[1], {"init": init, "save_every": 3})
    with pytest.raises(RuntimeError):
        train_concept(recipe, homes[1], stop)
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **more: tuple(1.01 * one.abs() for one in svd(*a, **more)))
    assert same(straight, train_concept(recipe, homes[1], resume=True))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"init": "orthogonal", "rank": 3}, "init orthogonal takes an even rank, and rank is 3"),
        ({"init": "pisa"}, "init is 'pisa'"),
        ({"method": "krona", "factors": (4, 2), "init": "pissa"}, "init says nothing to the method krona"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_sdxl: Path, home: Home, given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tiny_recipe(tiny_sdxl, home, given)


@pytest.mark.parametrize(("init", "most"), [("pissa", 16), ("lora-ga", 8), ("eva", 16)])
def test_a_rank_beyond_the_layer_is_refused(init: str, most: int, tiny_sdxl: Path, home: Home) -> None:
    told: list[Event] = []
    with pytest.raises(UsageError, match=f"init {init} takes a rank of {most} at most"):
        train_concept(tiny_recipe(tiny_sdxl, home, {"init": init, "rank": 64, "targets": ("to_q",)}), home, told.append)
    assert not any(isinstance(one, Phase) and one.name == "train" for one in told)
