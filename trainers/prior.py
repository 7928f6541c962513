"""Class pictures: what the base draws for the class before a training, so that the training can hold it there."""

import hashlib
import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from studio.events import Emit, Phase, Step
from studio.home import write_atomic
from studio.models import BaseModel
from studio.trainers.cache import module_id
from studio.trainers.recipe import Recipe
from studio.trainers.sampling import batch_size, draw


def class_pictures(
    base: BaseModel, recipe: Recipe, captions: Sequence[str], cache: Path, emit: Emit
) -> list[tuple[Path, str]]:
    """The recipe's class pictures with their prompts, made by `base` with fixed seeds, or found in `cache`.

    Up to half of the prompts are `captions` (the concept's own, without its trigger): what else those say must not
    come to mean the concept. Every batch is made whole or taken whole, so that pictures do not depend on where an
    earlier run stopped.
    """
    own = list(dict.fromkeys(captions))[: recipe.prior_count // 2]
    prompts = list(islice(cycle([*own, *recipe.prior_prompts]), recipe.prior_count))
    settings = {
        "base": module_id(base.unet),
        "prompts": prompts,
        "resolution": recipe.resolution,
        "steps": recipe.sample_steps,
        "guidance": recipe.guidance,
        "seed": recipe.seed,
    }
    text = json.dumps(settings, indent=2)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:24]
    paths = [folder / f"{n:04d}.png" for n in range(recipe.prior_count)]
    size = batch_size(recipe.resolution)
    starts = range(0, len(paths), size)
    missing = [start for start in starts if not all(path.is_file() for path in paths[start : start + size])]
    if missing:
        write_atomic(folder / "settings.json", lambda file: file.write_text(text, encoding="utf-8"))
        emit(Phase("class pictures", len(missing)))
    for done, start in enumerate(missing, 1):
        part = slice(start, start + size)
        seeds = [recipe.seed + n for n in range(len(paths))[part]]
        made = draw(base, prompts[part], seeds, recipe.resolution, recipe.sample_steps, recipe.guidance)
        for path, picture in zip(paths[part], made, strict=True):
            write_atomic(path, lambda file, picture=picture: picture.save(file, "PNG"))
        emit(Step(done, len(missing)))
    return list(zip(paths, prompts, strict=True))
