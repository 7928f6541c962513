"""The previews of a training: which of them stay, and all on one labelled sheet, a row for each prompt, a column for
each step."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from studio.home import write_atomic
from studio.pipelines.contact_sheet import comparison_sheet
from studio.trainers.recipe import Recipe

_CELL = 192  # pixels
_NAME = re.compile(r"step-(\d+)-(\d+)\.png")


def forget_previews(samples: Path, step: int, before: Sequence[str], now: Sequence[str]) -> None:
    """Remove what a training that goes on after `step` cannot show: later steps, and rows whose prompt is another now
    than it was `before`."""
    same = {n for n, (old, new) in enumerate(zip(before, now, strict=False)) if old == new}
    for file in samples.glob("step-*.png"):
        match = _NAME.fullmatch(file.name)
        if match and (int(match[1]) > step or int(match[2]) not in same):
            file.unlink()


def draw_grid(samples: Path, recipe: Recipe, path: Path) -> bool:
    """Write the previews in `samples` as the PNG `path`; False where there are none.

    The first column is step 0, the untrained base; a step without a picture of every prompt is left out. A row has
    one seed, and pictures wider than 192 pixels are made smaller.
    """
    found: dict[int, dict[int, Path]] = {}
    for file in sorted(samples.glob("step-*.png")):
        if match := _NAME.fullmatch(file.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = file
    prompts = recipe.sample_prompts
    whole = [step for step, files in sorted(found.items()) if prompts and set(files) >= set(range(len(prompts)))]
    if not whole:
        return False
    rows = {
        f"{textwrap.shorten(prompt, 40)}, seed {recipe.seed + n}": [_small(found[step][n]) for step in whole]
        for n, prompt in enumerate(prompts)
    }
    sheet = comparison_sheet(rows, ["base" if step == 0 else f"step {step}" for step in whole])
    write_atomic(path, lambda file: sheet.save(file, "PNG"))
    return True


def _small(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        made = picture.convert("RGB")
    made.thumbnail((_CELL, _CELL))
    return made
