import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recipe import GIVEN

from studio.errors import StudioError, UsageError
from studio.trainers import checkpoint as module
from studio.trainers.checkpoint import (
    Checkpoint,
    check_same_data,
    check_same_training,
    latest_checkpoint,
    save_checkpoint,
)
from studio.trainers.recipe import Recipe, build_recipe


def at(step: int, recipe: dict[str, Any] | None = None) -> Checkpoint:
    return Checkpoint(step, {"weight/a": torch.full((3,), float(step))}, recipe or {}, "data")


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    told: list[str] = []
    return latest_checkpoint(folder, told.append), told


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, at(3), keep=2)
    found, told = newest(tmp_path)
    assert found is not None
    assert (found.step, found.data, told) == (3, "data", [])
    assert torch.equal(found.tensors["weight/a"], torch.full((3,), 3.0))


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1000):
        save_checkpoint(tmp_path, at(step), keep=2)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["step-000100", "step-001000"]


def test_half_written_folders_are_never_taken(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, at(1), keep=2)
    (tmp_path / "step-000002.tmp").mkdir()
    (tmp_path / "step-000003").mkdir()
    found, told = newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step-000003" in told[0]


@pytest.mark.parametrize("damage", ["cut", "flip", "manifest"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, at(1), keep=2)
    place = save_checkpoint(tmp_path, at(2), keep=2)
    file = place / ("manifest.json" if damage == "manifest" else "training.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[: len(content) // 2] if damage in ("cut", "manifest") else content)
    found, told = newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step-000002 is damaged" in told[0]


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, at(1), keep=1)

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_through", full)
    with pytest.raises(StudioError, match="No space left on device") as failure:
        save_checkpoint(tmp_path, at(2), keep=1)
    assert "--resume" in failure.value.remedy
    assert [place.name for place in tmp_path.iterdir()] == ["step-000001"]


def test_other_settings_are_refused_with_the_difference() -> None:
    recipe = build_recipe([GIVEN])
    made = at(1, json.loads(recipe.model_dump_json()))
    check_same_training(made, recipe)
    check_same_training(made, build_recipe([GIVEN, {"steps": 99, "save_every": 7, "sample_prompts": ["x"]}]))
    with pytest.raises(UsageError, match="rank: 4 -> 5"):
        check_same_training(made, build_recipe([GIVEN, {"rank": 5}]))


def test_other_pictures_are_refused() -> None:
    found = replace(at(1), dtype="torch.float32")
    check_same_data(found, "data", torch.float32)
    with pytest.raises(UsageError, match="have changed"):
        check_same_data(found, "other data", torch.float32)
    with pytest.raises(UsageError, match="older version"):  # which did not say what it computed in
        check_same_data(at(1), "other data", torch.float32)


def test_every_setting_that_may_change_exists() -> None:
    assert set(Recipe.model_fields) >= module.HARMLESS
