"""Small trainings for tests: pictures, recipes, and what came out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from studio.concepts import Concept
from studio.events import Event, Loss
from studio.home import Home
from studio.trainers.planning import plan_recipe
from studio.trainers.recipe import Recipe

TINY: dict[str, Any] = {
    "name": "milo",
    "class_word": "cat",
    "trigger": "sks",
    "steps": 6,
    "rank": 2,
    "batch_size": 2,
    "schedule": "constant",
    "warmup_steps": 0,
    "gradient_checkpointing": False,
    "learning_rate": 5e-3,
    "prior_count": 3,
    "prior_prompts": ("a cat", "a dog"),
    "sample_every": 0,
    "validate_every": 0,
    "sample_steps": 2,
    "save_every": 100,
}

SIZES = {
    "0": (64, 64),
    "1": (80, 48),
    "2": (48, 80),
    "3": (128, 32),
    "4": (90, 50),
    "3_often/5": (64, 64),
}  # in pixels; buckets of 64 x 64 in steps of 16 have all but the fifth, which becomes 80 x 48
MIXED = {"resolution": 64, "buckets": True}


def draw_pictures(folder: Path, count: int = 3) -> Path:
    """`count` noisy pictures of 40 x 32 px in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def shapes(home: Home, names: list[str] | None = None) -> Path:
    """Noisy pictures of SIZES, each with its name as caption, in the home."""
    folder = home.root / "pictures"
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        if names is None or name in names:
            file = folder / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
            file.with_suffix(".txt").write_text(f"sks cat {file.stem}")
    return folder


def tiny_recipe(base: Path, home: Home, changes: dict[str, Any] | None = None) -> Recipe:
    """A training of seconds on `base`, with `changes`; its pictures lie in the home. KronA and OFT know no rank."""
    pictures = home.root / "pictures"
    if not pictures.exists():
        draw_pictures(pictures)
    ranked = (changes or {}).get("method") not in ("krona", "oft")
    small = {key: value for key, value in TINY.items() if key != "rank" or ranked}
    return plan_recipe(small | {"base": str(base), "pictures": pictures} | (changes or {}), None, home)


def weights(concept: Concept) -> dict[str, torch.Tensor]:
    """The trained tensors by name."""
    return load_file(concept.adapter_file)


def same(one: Concept, other: Concept) -> bool:
    """Whether two trainings gave the same weights, bit for bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Halt(Exception):
    """Stands for whatever ends a process in the middle."""


def halting(step: int, error: type[BaseException] = Halt) -> Callable[[Event], None]:
    """A listener that ends a training once `step` is done."""

    def listen(event: Event) -> None:
        if isinstance(event, Loss) and event.step == step:
            raise error

    return listen
