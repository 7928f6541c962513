"""Checkpoints that survive a crash: whole or absent, verified by hash, the newest good one wins.

A checkpoint is a folder `step-N` with `training.safetensors` and `manifest.json` (step, recipe, data, SHA-256). It is
filled under the name `step-N.tmp` and renamed last.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from studio.errors import StudioError, UsageError
from studio.trainers.cache import Tensors
from studio.trainers.recipe import Recipe

_TENSORS, _MANIFEST = "training.safetensors", "manifest.json"
HARMLESS = frozenset(
    {"steps", "preset", "pictures", "save_every", "keep_checkpoints", "guidance", "offload"}
) | frozenset({"sample_every", "sample_prompts", "sample_steps", "validate_every", "score_prompts"})
"""Settings of which an interrupted training may have others when it goes on."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after `step` steps; `data` is the fingerprint of what it was trained on, `dtype` what its
    base computed in."""

    step: int
    tensors: Tensors
    recipe: dict[str, Any]
    data: str
    dtype: str | None = None  # which older ones do not say

    @property
    def losses(self) -> list[float]:
        """That of every step so far."""
        return self.tensors["losses"].tolist()


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoint` below `folder` and delete all but the newest `keep`; returns its folder.

    Raises StudioError where the disk is full or refuses; nothing half-written stays and older ones are intact.
    """
    final = folder / f"step-{checkpoint.step:06d}"
    temporary = final.with_suffix(".tmp")
    content = save(checkpoint.tensors)
    manifest = {
        "step": checkpoint.step,
        "recipe": checkpoint.recipe,
        "data": checkpoint.data,
        "dtype": checkpoint.dtype,
        "files": {_TENSORS: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}},
    }
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_through(temporary / _TENSORS, content)
        _write_through(temporary / _MANIFEST, json.dumps(manifest, indent=2).encode())
        _sync_folder(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StudioError(
            f"The checkpoint of step {checkpoint.step} cannot be written in {folder}: {error.strerror or error}.",
            "Free some space, then go on from the checkpoint before it with --resume.",
        ) from error
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose hash is right, or None; `tell` hears of each damaged one that was passed over."""
    for place in reversed(_folders(folder)):
        try:
            return _read(place)
        except (OSError, ValueError, LookupError) as error:
            tell(f"The checkpoint {place.name} is damaged ({error}); going back to the one before it.")
    return None


def check_same_training(found: Checkpoint, recipe: Recipe) -> None:
    """Raise UsageError with the differences where `recipe` is not the one that `found` was made by.

    Settings that only say how long to train and what to show may differ.
    """
    usual = {key: field.default for key, field in Recipe.model_fields.items()}  # it may be older than some
    had, wanted = (_deciding(usual | told) for told in (found.recipe, recipe.model_dump(mode="json")))
    changed = [key for key in wanted if had[key] != wanted[key]]
    if changed:
        listed = "\n".join(f"  {key}: {had[key]!r} -> {wanted[key]!r}" for key in changed)
        raise UsageError(
            f"The interrupted training had other settings:\n{listed}",
            "Resume with the old settings (give only --name and --resume), or start again with --overwrite.",
        )


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that must be the same, of further concepts too."""
    others = [_deciding(other) for other in settings.get("others", ())]
    kept = {key: value for key, value in settings.items() if key not in HARMLESS}
    return kept | {"others": others} if others else kept


def check_same_data(found: Checkpoint, data: str, dtype: torch.dtype) -> None:
    """Raise UsageError where the pictures, captions or base are not those that `found` was made with, or the base
    computes in another type of number."""
    if found.dtype not in (None, str(dtype)):
        raise UsageError(
            f"The interrupted training computed in {found.dtype}, and on this device it would be {dtype}.",
            "Go on with the same --device as before, or start again with --overwrite.",
        )
    if found.data != data and found.dtype is None:
        raise UsageError(
            "This training was begun by an older version of the studio, which made and read its material otherwise.",
            "Finish it with that version, or start again with --overwrite.",
        )
    if found.data != data:
        raise UsageError(
            "The pictures, their captions or the base have changed since this training was interrupted.",
            "Put them back as they were, or start again with --overwrite.",
        )


def _read(place: Path) -> Checkpoint:
    manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
    content = (place / _TENSORS).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["files"][_TENSORS]["sha256"]:
        raise ValueError(f"{_TENSORS} is not what was written")
    return Checkpoint(manifest["step"], load(content), manifest["recipe"], manifest["data"], manifest.get("dtype"))


def _folders(folder: Path) -> list[Path]:
    return sorted(place for place in folder.glob("step-*") if place.suffix != ".tmp")


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
