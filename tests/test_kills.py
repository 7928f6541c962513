"""A training that is killed at a random moment, also while it saves, ends with the weights of one that was not."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from soaking import SOAK, soaked
from training_helpers import MIXED, same, shapes, tiny_recipe

from studio.concepts import Concept
from studio.home import Home
from studio.library import Library
from studio.trainers.dreambooth import train_concept
from studio.trainers.recipe import Recipe, write_toml
from studio.trainers.workplace import RECIPE_FILE, workplace_of

KILLS = 20 if SOAK else 1
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"prior_preservation": False},
    "everything": {
        "gradient_accumulation": 3,
        "batch_size": 1,
        "schedule": "cosine",
        "dropout": 0.1,
        "noise_offset": 0.05,
        "new_word": True,
        "trigger": "milo0",
        "text_rank": 2,
        "ema": 0.9,
        **MIXED,
    },
}
CHILD = """
import sys
from pathlib import Path
from studio.events import Loss
from studio.home import Home
from studio.trainers.dreambooth import train_concept
from studio.trainers.recipe import Recipe, read_toml

def tell(event):
    if isinstance(event, Loss):
        print(event.step, flush=True)

train_concept(Recipe(**read_toml(Path(sys.argv[1]))), Home(Path(sys.argv[2])), tell, resume=sys.argv[3] == "True")
"""


def killed(recipe: Recipe, home: Home, chance: random.Random, resume: bool) -> bool:
    """Train in a process of its own and kill it some time after a random step; whether it was still at work."""
    write_toml(recipe, home.root / "recipe.toml")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, home.root / "recipe.toml", home.root, str(resume)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    last = chance.randint(0, recipe.steps)
    for line in child.stdout if last else ():
        if int(line) >= last:
            break
    time.sleep(chance.uniform(0, 0.2 if last else 6))
    child.kill()
    return child.wait() == -signal.SIGKILL


def finished(recipe: Recipe, home: Home) -> Concept:
    """The concept, of an interrupted training or of one that was done before the kill."""
    if Library(home).concepts():
        return Library(home).find(recipe.name)
    begun = (workplace_of(home, recipe.name).folder / RECIPE_FILE).is_file()
    return train_concept(recipe, home, resume=begun)


@pytest.mark.slow
@pytest.mark.timeout(3600 if SOAK else 600)
@pytest.mark.parametrize("kind", [pytest.param("plain", marks=soaked), "everything"])
def test_a_killed_training_ends_as_one_that_was_not(tiny_sdxl: Path, tmp_path: Path, kind: str) -> None:
    changes = {"steps": 20, "save_every": 1} | KINDS[kind]
    straight = Home(tmp_path / "straight")
    shapes(straight)
    expected = train_concept(tiny_recipe(tiny_sdxl, straight, changes), straight)
    at_work = 0
    for number in range(KILLS):
        chance, home = random.Random(f"{kind} {number}"), Home(tmp_path / str(number))
        shapes(home)
        recipe = tiny_recipe(tiny_sdxl, home, changes)
        at_work += killed(recipe, home, chance, resume=False)
        if begun := (workplace_of(home, "milo").folder / RECIPE_FILE).is_file():
            at_work += killed(recipe, home, chance, resume=begun)
        assert same(expected, finished(recipe, home)), f"kill {number} left a mark"
    assert at_work >= KILLS / 2
