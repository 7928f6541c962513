from pathlib import Path
from typing import Any

import pytest
import torch
from composing import latents
from test_krona import WIDE, predicted
from training_helpers import same, tiny_recipe

from studio.adapters import load_concept
from studio.attaching import attach
from studio.bank import AdapterBank
from studio.concepts import Concept
from studio.errors import UsageError
from studio.events import Event, Notice, Step
from studio.gates import Gate
from studio.home import Home
from studio.models import find_base, load_base
from studio.pipelines.baselines import Composite, Merge
from studio.trainers.dreambooth import train_concept
from studio.trainers.peft_tuner import PeftTuner
from studio.trainers.training import Training

LOKR: dict[str, Any] = {"method": "lokr", "decompose_factor": 2, "rank": 2, "alpha": 3.0}
LOHA: dict[str, Any] = {"method": "loha", "rank": 2, "alpha": 3.0}
METHODS = pytest.mark.parametrize("method", [LOKR, LOHA], ids=["lokr", "loha"])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    found: list[Training] = []
    prepare = Training.__post_init__
    monkeypatch.setattr(Training, "__post_init__", lambda self: (prepare(self), found.append(self))[0])
    return found


@METHODS
@pytest.mark.parametrize("folder", ["tiny_sdxl", "tiny_sd15"])
def test_the_file_changes_every_layer_as_peft_did(
    folder: str, method: dict, home: Home, request: pytest.FixtureRequest, trained: list[Training]
) -> None:
    at = request.getfixturevalue(folder)
    more = {"steps": 3, "targets": WIDE, "learning_rate": 0.05, "new_word": True, "trigger": "milo0"}
    concept = train_concept(tiny_recipe(at, home, method | more), home)
    tuner, adapter = trained[0].tuner, load_concept(concept)
    assert isinstance(tuner, PeftTuner)
    assert adapter.factors.keys() == {f"unet.{name}" for name in tuner.layers}
    assert list(adapter.embeddings) == ["milo0"]
    assert not adapter.unread
    for name, layer in tuner.layers.items():
        truth: torch.Tensor = layer.double().get_delta_weight("default")  # pyright: ignore
        got = adapter.delta(f"unet.{name}").double().reshape(truth.shape)
        assert truth.norm() > 0
        assert (got - truth).norm() < 1e-6 * truth.norm()


@METHODS
def test_the_file_attached_is_what_was_trained(
    method: dict, tiny_sdxl: Path, home: Home, trained: list[Training]
) -> None:
    told: list[Event] = []
    recipe = tiny_recipe(tiny_sdxl, home, method | {"steps": 3, "targets": WIDE, "learning_rate": 0.05})
    concept = train_concept(recipe, home, told.append)
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    live, alone = predicted(trained[0].base), predicted(base)
    assert (live - alone).abs().max() > 1e-3
    with attach(base, [(load_concept(concept), 1.0)]):
        torch.testing.assert_close(predicted(base), live, atol=1e-5, rtol=1e-5)
    with trained[0].tuner.without():
        assert torch.equal(predicted(trained[0].base), alone)
    count = sum(one.numel() for one in trained[0].parameters.values())
    kind = {"lokr": "LoKr", "loha": "LoHa"}[method["method"]]
    said = next(one.message for one in told if isinstance(one, Notice) and "parameters" in one.message)
    assert said.startswith(f"{kind} of rank 2 on {len(trained[0].tuner.layers)} layers")  # pyright: ignore
    assert f"{count:,} parameters" in said
    card = (concept.folder / "README.md").read_text()
    assert f"The file is a {kind}, as LyCORIS writes it. For what reads plain LoRA only:" in card
    assert "studio convert" in card


def test_the_sizes_are_those_of_the_method(tiny_sdxl: Path, home: Home) -> None:
    for method in (LOKR, LOHA):
        base = load_base(find_base(str(tiny_sdxl)), "cpu")
        alone = predicted(base)
        tuner = PeftTuner(base, tiny_recipe(tiny_sdxl, home, method | {"targets": ("to_q", "conv1")}))
        assert torch.equal(predicted(base), alone)
        for name, layer in tuner.layers.items():
            weight: Any = layer.get_base_layer().weight
            out, inputs = weight.shape[:2]
            size = weight[0, 0].numel()
            count = sum(one.numel() for key, one in tuner.parameters.items() if key.startswith(f"{name}."))
            if method is LOHA:
                assert count == 2 * 2 * (out + inputs * size)
            elif max(out, inputs) // 2 <= 4:  # whole where the rank is half its side or more
                assert count == 4 + out * inputs * size // 4
            else:
                assert count == 4 + 2 * (out // 2 + inputs * size // 2)


@METHODS
def test_resuming_is_exact(method: dict, tiny_sdxl: Path, tmp_path: Path) -> None:
    homes = [Home(tmp_path / name) for name in "ab"]
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], method), homes[0])

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5 and event.total == 6:
            raise RuntimeError

    recipe = tiny_recipe(tiny_sdxl, homes[1], method | {"save_every": 3})
    with pytest.raises(RuntimeError):
        train_concept(recipe, homes[1], stop)
    assert same(straight, train_concept(recipe, homes[1], resume=True))


def test_files_of_both_kinds_compose(tiny_sdxl: Path, home: Home, trained: list[Training]) -> None:
    """The oracle is the sum of peft's own changes in the weights of one base."""
    concepts: list[Concept] = []
    for name, method in (("milo", LOKR), ("rex", LOHA)):
        word = {"name": name, "new_word": True, "trigger": f"{name}0", "learning_rate": 0.05, "targets": WIDE}
        concepts.append(train_concept(tiny_recipe(tiny_sdxl, home, method | word), home))
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    for composer in (Merge(), Composite()):
        made, _ = latents(base, concepts, composer)
        assert made.isfinite().all()
    bank = AdapterBank(base, [load_concept(one) for one in concepts])
    with bank.installed(), bank.use(Gate(torch.ones(1, 2))):
        composed = predicted(base)
    with torch.no_grad():
        for training in trained:
            for name, layer in training.tuner.layers.items():  # pyright: ignore
                base.unet.get_submodule(name).weight += layer.get_delta_weight("default")  # pyright: ignore
    torch.testing.assert_close(composed, predicted(base), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (LOKR | {"dora": True}, "dora says nothing to the method lokr"),
        (LOHA | {"decompose_factor": 4}, "decompose_factor says nothing to the method loha"),
        (LOHA | {"init": "pissa"}, "init says nothing to the method loha"),
        (LOKR | {"factors": (4, 4)}, "factors says nothing to the method lokr"),
        ({"decompose_factor": 4}, "decompose_factor says nothing to the method lora"),
    ],
)
def test_settings_of_another_method_are_refused(tiny_sdxl: Path, home: Home, given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tiny_recipe(tiny_sdxl, home, given)
