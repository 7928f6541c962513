"""Pictures that the base draws once before a training: of the class, so that the training can hold it there."""

import hashlib
import json
from collections.abc import Sequence
from itertools import chain, cycle, islice
from pathlib import Path

from studio.events import Emit, Phase, Step
from studio.home import write_atomic
from studio.models import BaseModel
from studio.trainers.data import Example
from studio.trainers.recipe import Recipe
from studio.trainers.sampling import batch_size, draw

NOWHERE = (0.0, 0.0, 0.0, 0.0)


def class_examples(base: BaseModel, recipe: Recipe, captions: Sequence[str], cache: Path, emit: Emit) -> list[Example]:
    """The recipe's class pictures with their prompts, of which nothing is learned where the base is the target.

    At most about half of the prompts are `captions` (the concept's own, without its trigger): what else those say must
    not come to mean the concept.
    """
    own, half = list(dict.fromkeys(captions)), recipe.prior_count // 2
    turns = cycle([*own[:half], *recipe.prior_prompts])
    if len(own) > len(recipe.prior_prompts):
        turns = chain.from_iterable(zip(cycle(own), cycle(recipe.prior_prompts), strict=False))
    prompts = list(islice(turns, recipe.prior_count))
    region = NOWHERE if recipe.prior_target == "base" else None
    paths = drawn_once(base, recipe, prompts, cache, emit, "class pictures")
    return [Example(path, prompt, region=region) for path, prompt in zip(paths, prompts, strict=True)]


def drawn_once(
    base: BaseModel, recipe: Recipe, prompts: Sequence[str], cache: Path, emit: Emit, what: str
) -> list[Path]:
    """A picture a prompt, made by `base` with fixed seeds, or found in `cache`.

    Every batch is made whole or taken whole, so that pictures do not depend on where an earlier run stopped.
    """
    settings = {
        "base": base.weights_id(),
        "prompts": prompts,
        "resolution": recipe.resolution,
        "steps": recipe.sample_steps,
        "guidance": recipe.guidance,
        "seed": recipe.seed,
    }
    text = json.dumps(settings, indent=2)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:24]
    paths = [folder / f"{n:04d}.png" for n in range(len(prompts))]
    size = batch_size(recipe.resolution)
    starts = range(0, len(paths), size)
    missing = [start for start in starts if not all(path.is_file() for path in paths[start : start + size])]
    total = sum(len(paths[start : start + size]) for start in missing)
    if missing:
        write_atomic(folder / "settings.json", lambda file: file.write_text(text, encoding="utf-8"))
        emit(Phase(what, total))
    done = 0
    for start in missing:
        part = slice(start, start + size)
        seeds = [recipe.seed + n for n in range(len(paths))[part]]
        made = draw(base, list(prompts[part]), seeds, recipe.resolution, recipe.sample_steps, recipe.guidance)
        for path, picture in zip(paths[part], made, strict=True):
            write_atomic(path, lambda file, picture=picture: picture.save(file, "PNG"))
        done += len(made)
        emit(Step(done, total))
    return paths
