"""When the device's memory is not enough: in which phase, and what saves how much."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from studio.errors import StudioError
from studio.events import Emit, Event, Notice, Phase
from studio.trainers.estimate import need_of
from studio.trainers.recipe import Recipe
from studio.trainers.training import Training


@contextmanager
def naming_the_phase(recipe: Recipe, emit: Emit) -> Iterator[Emit]:
    """A listener to use in the block in place of `emit`; where memory ends there, StudioError says in which phase."""
    phase = "start"

    def listen(event: Event) -> None:
        nonlocal phase
        phase = event.name if isinstance(event, Phase) else phase
        emit(event)

    try:
        yield listen
    except torch.OutOfMemoryError as error:
        told = f"{str(error).partition('. ')[0].rstrip('.')}."
        listed = "\n".join(f"  {n}. {one}" for n, one in enumerate(savings(recipe), 1))
        raise StudioError(
            f"The device has too little memory for {recipe.name!r} (in the phase {phase!r}). {told}",
            f"What helps, what costs least first:\n{listed}\nThen start again with --overwrite.",
        ) from error


def check_memory(training: Training, emit: Emit) -> None:
    """Tell what a step takes; and where the device has less free, what helps."""
    need, device = need_of(training), training.base.device
    emit(Notice(f"A step takes {need}."))
    if device.type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    if need.total > free:
        listed = "; ".join(savings(training.recipe))
        emit(Notice(f"The device has {free / 1e9:.2f} GB for it, which may not do. What helps: {listed}."))


def savings(recipe: Recipe) -> list[str]:
    """What would take less memory and is not done yet, the least harmful first."""
    half, count = recipe.resolution // 2 // 64 * 64, recipe.batch_size * recipe.gradient_accumulation
    found = {
        "close other programs that use the device": True,
        "gradient_checkpointing = true in a recipe (--config): slower, the same weights": (
            not recipe.gradient_checkpointing
        ),
        "offload = true in a recipe: what a step does not use waits in the computer's memory": (
            not (recipe.offload or recipe.new_word or recipe.text_rank)
        ),
        f"--batch-size 1 with gradient_accumulation = {count} in a recipe: the same weights": (recipe.batch_size > 1),
        "--no-prior: half the pictures a step, and the class may drift": recipe.prior_preservation,
        f"--rank {recipe.rank // 2}": recipe.method not in ("krona", "oft") and recipe.rank > 4,
        f"--resolution {half}: less detail": half >= 64,
        "--device cpu: slow": True,
    }
    return [text for text, helps in found.items() if helps]
