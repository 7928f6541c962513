"""Pictures from a prompt, with any number of concepts merged by plain addition."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from studio.adapters import Adapter, load_concept
from studio.attaching import attach
from studio.bases import Sizes
from studio.concepts import Concept, expand_prompt
from studio.errors import StudioError
from studio.events import Emit, Notice, Phase, Step
from studio.hush import hushed
from studio.models import BaseModel
from studio.pipelines.attention_backend import attending
from studio.pipelines.compiled import compiled_blocks
from studio.pipelines.schedulers import make_scheduler
from studio.pipelines.settings import GenerateSettings

__all__ = ["GenerateSettings", "generate"]

PIXELS_AT_ONCE = 1024 * 1024
PICTURES_AT_ONCE = 16


def generate(
    base: BaseModel, settings: GenerateSettings, concepts: Sequence[tuple[Concept, float]], emit: Emit
) -> list[Image]:
    """`settings.count` pictures; each concept acts with its strength, and `<name>` stands for its words.

    Picture i is drawn from the seed `settings.seed + i` on the CPU, whatever the device and the batch.
    The base is as before at the end, also after an exception or Ctrl-C. Raises UsageError for a size that the base
    cannot draw, a scheduler that does not suit it and concepts that do not fit it.
    """
    width, height = settings.size_for(base.sizes)
    known = [concept for concept, _ in concepts]
    settings = replace(
        settings,
        prompt=expand_prompt(settings.prompt, known),
        negative_prompt=expand_prompt(settings.negative_prompt, known),
        width=width,
        height=height,
    )
    for text in (settings.prompt, settings.negative_prompt):
        if unread := base.unread(text):
            limit = base.text_limit
            emit(Notice(f"The base reads {limit} tokens of a text; the rest has no effect: {unread!r}."))
    adapters = [(load_concept(concept), strength) for concept, strength in concepts]
    with (
        attending(base, settings.attention),
        _prepared(base, settings, [one for one, _ in adapters]),
        attach(base, adapters) as receipts,
        hushed(),
    ):
        for warning in filter(None, (receipt.warning() for receipt in receipts)):
            emit(Notice(warning))
        with compiled_blocks(base, (), emit).plain() if settings.compiled else nullcontext():
            return _draw_all(base, settings, emit)


@contextmanager
def _prepared(base: BaseModel, settings: GenerateSettings, adapters: Sequence[Adapter]) -> Iterator[None]:
    """The pipeline with the scheduler and the savings asked for; both are taken back at the end."""
    own, vae = base.scheduler, base.vae
    before = vae.use_tiling, vae.use_slicing
    base.pipe.register_modules(scheduler=make_scheduler(base, settings.scheduler, adapters))
    if settings.vae_tiling:
        vae.enable_tiling()
        vae.enable_slicing()
    try:
        yield
    finally:
        base.pipe.register_modules(scheduler=own)
        vae.use_tiling, vae.use_slicing = before


def batches_of(settings: GenerateSettings, sizes: Sizes) -> list[range]:
    """The seeds of `settings`, as many together as memory surely holds at once."""
    width, height = settings.size_for(sizes)
    at_once = max(1, min(PICTURES_AT_ONCE, PIXELS_AT_ONCE // (width * height)))
    seeds = range(settings.seed, settings.seed + settings.count)
    return [seeds[start : start + at_once] for start in range(0, len(seeds), at_once)]


def _draw_all(base: BaseModel, settings: GenerateSettings, emit: Emit) -> list[Image]:
    batches = batches_of(settings, base.sizes)
    emit(Phase("Drawing"))
    pictures: list[Image] = []
    for done, batch in enumerate(batches):
        pictures += _draw(base, settings, batch, _Steps(emit, done, len(batches)))
    return pictures


def _draw(base: BaseModel, settings: GenerateSettings, seeds: range, on_step_end: "_Steps") -> list[Image]:
    """The pictures of `seeds` in one batch, by the base's own diffusers pipeline.

    Raises StudioError where half precision overflowed, which would otherwise be saved as black.
    """
    output = base.pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt or None,  # none at all: SDXL then zeroes the unconditional text
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        callback_on_step_end=on_step_end,
        output_type="np",
    )
    if not np.isfinite(output.images).all():
        raise StudioError(
            f"The base {base.source.name!r} drew no numbers: its values overflow in {base.dtype}.",
            "Use a base whose VAE is made for half precision, or --device cpu.",
        )
    return base.pipe.image_processor.numpy_to_pil(output.images)


class _Steps:
    """Turns the pipeline's callback into events that count over all batches."""

    def __init__(self, emit: Emit, batches_done: int, batches: int) -> None:
        self.emit = emit
        self.batches_done = batches_done
        self.batches = batches

    def __call__(self, pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        per_batch = pipe.num_timesteps
        self.emit(Step(self.batches_done * per_batch + step + 1, self.batches * per_batch))
        return {}
