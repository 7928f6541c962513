"""The embedded base and the judges replaced by tiny untrained ones, so that whole commands run in seconds."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from studio.judge import Judge, JudgeNet
from studio.picturebook import IDENTIFIERS
from studio.trainers import presets

_own = presets._own


def shrink(monkeypatch: pytest.MonkeyPatch, tiny_sdxl: Path, folder: Path) -> Path:
    """Put a copy of `tiny_sdxl` in the place of the embedded base; trainings take two steps. Returns the copy."""
    shutil.copytree(tiny_sdxl, folder)
    facts = {"identifiers": IDENTIFIERS, "native_size": 32, "prior_prompts": ["a {class_word}"]}
    (folder / "studio_base.json").write_text(json.dumps(facts))
    few = {"steps": 2, "rank": 2, "alpha": 2.0, "prior_count": 1, "sample_every": 1, "sample_steps": 1, "save_every": 1}
    few |= {"targets": ("to_k", "to_v"), "batch_size": 2, "pair_count": 1}
    monkeypatch.setattr("studio.bases.embedded_folder", lambda: folder)
    monkeypatch.setattr("studio.trainers.presets._own", lambda preset, word: _own(preset, word) | few)
    monkeypatch.setattr("studio.judge.Judge.load", staticmethod(untrained_judge))
    return folder


def untrained_judge(which: str) -> Judge:
    """A judge that knows nothing, and says so always in the same way."""
    torch.manual_seed(len(which))
    return Judge(JudgeNet("A" if which == "A" else "B"))
