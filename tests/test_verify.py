"""A file that is not what was trained never gets a concept's name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import tiny_recipe

from studio.adapters import load_concept
from studio.errors import StudioError
from studio.factors import Dora, Factor, Full, Kronecker, LowRank
from studio.home import Home
from studio.library import Library
from studio.tensorfile import read_header
from studio.trainers import verify
from studio.trainers.dreambooth import train_concept
from studio.trainers.krona import KronaTuner
from studio.trainers.lora import LoraTuner
from studio.trainers.workplace import workplace_of

FRESH = verify.in_fresh_process  # before tests/conftest.py puts another in its place
Damage = Callable[[dict[str, torch.Tensor], dict[str, str]], None]


def one_number(tensors: dict[str, torch.Tensor], notes: dict[str, str]) -> None:
    next(tensor for name, tensor in tensors.items() if "lora_A" in name or "lokr" in name).flatten()[3] *= 1.01


def a_layer_less(tensors: dict[str, torch.Tensor], notes: dict[str, str]) -> None:
    layer = next(name for name in tensors if "lora_A" in name or "lokr" in name)
    for name in [name for name in tensors if name.startswith(layer.rpartition(".lo")[0])]:
        del tensors[name]


def wrong_alpha(tensors: dict[str, torch.Tensor], notes: dict[str, str]) -> None:
    settings = json.loads(notes["lora_adapter_metadata"])
    notes["lora_adapter_metadata"] = json.dumps(settings | {"unet.lora_alpha": 3.0})


def wrong_magnitude(tensors: dict[str, torch.Tensor], notes: dict[str, str]) -> None:
    next(tensor for name, tensor in tensors.items() if "magnitude" in name)[0] *= 1.001


def wrong_word(tensors: dict[str, torch.Tensor], notes: dict[str, str]) -> None:
    next(tensor for name, tensor in tensors.items() if name.startswith("lora_word"))[0, 0] += 0.01


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ({}, one_number), ({}, a_layer_less), ({}, wrong_alpha), ({"dora": True}, wrong_magnitude),
        ({"new_word": True, "trigger": "milo0"}, wrong_word),
        ({"method": "krona", "factors": (2, 2)}, one_number), ({"method": "krona", "factors": (2, 2)}, a_layer_less),
    ],
)  # fmt: skip
def test_a_file_damaged_after_it_was_written_is_not_kept(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any], damage: Damage
) -> None:
    tuner: Any = KronaTuner if "factors" in kind else LoraTuner
    write = tuner.write

    def damaged(self: Any, path: Path, *others: Any) -> None:
        write(self, path, *others)
        tensors, notes = load_file(path), read_header(path).metadata
        damage(tensors, notes)
        save_file(tensors, path, notes)

    recipe = tiny_recipe(tiny_sdxl, home, {"steps": 2} | kind)
    with monkeypatch.context() as patch:
        patch.setattr(tuner, "write", damaged)
        with pytest.raises(StudioError, match="does not hold what was trained"):
            train_concept(recipe, home)
    assert Library(home).concepts() == []
    assert not (workplace_of(home, "milo").folder / "adapter.safetensors").exists()
    assert train_concept(recipe, home, resume=True).name == "milo"


@pytest.mark.slow
def test_a_fresh_process_agrees_and_disagrees(tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "in_fresh_process", FRESH)
    (home.root / "random.py").write_text("raise SystemExit(0)")  # of the user's own, where the command is given
    monkeypatch.chdir(home.root)
    concept = train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 1, "text_rank": 2, "dora": True}), home)
    prints = verify.fingerprints(load_concept(concept).factors, {})
    layer = next(name for name in prints if name.startswith("text_encoder_2."))
    prints[layer] = prints[layer] * 1.001
    said = FRESH([concept.adapter_file], prints, verify.EXACT)
    assert said == f"adapter.safetensors: 1 of {len(prints)} layers differ, the first is {layer}."


def test_a_file_that_cannot_be_read_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"cut short")
    assert "no safetensors file" in verify.found_wrong([tmp_path / "cut.safetensors"], {}, verify.EXACT)


A, B = torch.randn(3, 4), torch.randn(5, 2, 3, 3)


@pytest.mark.parametrize(
    ("factor", "dense"),
    [
        (LowRank(A, A.T, alpha=1.5), 0.5 * (A.T @ A)),
        (Kronecker(A, B), torch.kron(A, B.flatten(1))),
        (Kronecker(A, LowRank(A, A.T), alpha=6.0), 2 * torch.kron(A, A.T @ A)),
        (Full(B), B.flatten(1)),
    ],
)
def test_prints_are_those_of_the_dense_change(factor: Factor, dense: torch.Tensor) -> None:
    (found,), (wanted,) = (verify.fingerprints({"unet.x": one}, {}).values() for one in (factor, Full(dense)))
    torch.testing.assert_close(found.float(), wanted.float())


def test_a_magnitude_counts_beside_what_it_is_on() -> None:
    one, two = (verify.fingerprints({"x": Dora(LowRank(A, A.T), size)}, {}) for size in (torch.ones(4), torch.zeros(4)))
    assert verify.differing(one, two) == ["x"]
    assert verify.differing(one, one) == []
