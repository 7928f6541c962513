"""Further files of a trained concept, in the formats that other tools read: `--export kohya,lycoris`."""

from pathlib import Path

import torch

from studio.adapter_targets import TARGETS, Target, expressed
from studio.adapter_writing import write_adapter
from studio.adapters import Adapter, load_adapter
from studio.concepts import Concept
from studio.errors import UsageError
from studio.factors import Dora, Factor, Hadamard, Kronecker, LowRank
from studio.rotation import Rotation
from studio.trainers.recipe import Recipe
from studio.trainers.verify import ROUNDED, Prints, verify_files


def check_exports(recipe: Recipe, formats: tuple[str, ...]) -> tuple[Target, ...]:
    """The `formats`, each once, in the order of `TARGETS`.

    Raises UsageError for an unknown one, and for one that cannot hold what `recipe` trains.
    """
    if unknown := [name for name in formats if name not in TARGETS]:
        raise UsageError(f"--export: there is no format {unknown[0]!r}.", f"Choose among {', '.join(TARGETS)}.")
    chosen: tuple[Target, ...] = tuple(target for target in TARGETS if formats.count(target))
    holding = [target for target in TARGETS if not _problem(recipe, target)]
    for target in chosen:
        if problem := _problem(recipe, target):
            raise UsageError(
                f"--export {target} cannot hold what is trained: {problem}", f"Choose among {', '.join(holding)}."
            )
    return chosen


def write_exports(concept: Concept, formats: tuple[Target, ...], trained: Prints) -> list[Path]:
    """Write the concept's adapter in each format beside it, `NAME.FORMAT.safetensors` or for "peft" a folder.

    Raises StudioError, and keeps none, where a fresh process reads anything else than what was `trained`.
    """
    written = []
    for target in formats:
        path = concept.folder / f"{concept.name}.{target}{'' if target == 'peft' else '.safetensors'}"
        written.append(write_adapter(load_adapter(concept.adapter_file), path, target).path)
    if written:
        verify_files(written, trained, ROUNDED)
    return written


def _problem(recipe: Recipe, target: Target) -> str:
    """Why files of `target` cannot hold such an adapter; empty where they can."""
    words = {word: {"clip_l": torch.zeros(1, 1)} for word in recipe.triggers if recipe.new_word}
    like = Adapter(recipe.name, "", None, {"unet.mid_block.attentions.0.proj_in": _like(recipe)}, {}, words)
    try:
        expressed(like, target)
    except UsageError as error:
        return error.problem
    return ""


def _like(recipe: Recipe) -> Factor:
    """A small change of the kind that `recipe` trains."""
    pair = LowRank(torch.ones(1, 2), torch.ones(2, 1))
    others: dict[str, Factor] = {
        "krona": Kronecker(torch.ones(2, 2), torch.ones(2, 2, 3, 3)),
        "lokr": Kronecker(torch.ones(2, 2), pair),
        "loha": Hadamard(pair, pair),
        "oft": Rotation(torch.ones(1, 2, 2)),
    }
    if recipe.method in others:
        return others[recipe.method]
    return Dora(pair, torch.ones(2)) if recipe.dora else pair
