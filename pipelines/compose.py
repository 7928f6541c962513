"""Pictures of several concepts: one loop for every method, which is a plug-in that plans branches and combines them.

z <- refine(z);  E_b = model(z, branch b);  E = combine(E_b);  z <- step(u + guidance (c - u), z)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL.Image import Image

from studio.adapters import load_concept
from studio.bank import AdapterBank
from studio.concepts import Concept
from studio.errors import StudioError, UsageError
from studio.events import Emit, Notice, Phase, Step
from studio.models import BaseModel
from studio.pipelines.denoiser import Branch, Denoiser
from studio.pipelines.schedulers import make_scheduler
from studio.pipelines.settings import GenerateSettings
from studio.regions import Layout
from studio.spans import Spelled, spell

Tensor = torch.Tensor
LIMIT = 8


@dataclass
class Run:
    """What a composer knows of a composition: the concepts with their strengths, the prompt with their places in it,
    boxes if there are any, and where the loop stands (`step` of `steps`, from 0)."""

    base: BaseModel
    denoiser: Denoiser
    concepts: list[Concept]
    strengths: tuple[float, ...]
    prompt: Spelled
    negative: str
    layout: Layout | None
    size: tuple[int, int]  # of the latents: height, width
    steps: int
    guidance: float
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of the concepts, in the order of the bank."""
        return [concept.name for concept in self.concepts]

    def only(self, *chosen: int) -> tuple[float, ...]:
        """The strengths of some concepts, zero for the others."""
        return tuple(s if n in chosen else 0.0 for n, s in enumerate(self.strengths))


class Composer(Protocol):
    """A way to let several adapters make one picture.

    Where `folds`, all adapters act everywhere at one strength, and are merged into the weights.
    """

    folds: bool

    def begin(self, run: Run) -> None:
        """Check what the method needs, encode the texts of its branches (`run.denoiser.read`); raises UsageError."""
        ...

    def branches(self, run: Run) -> list[Branch]:
        """The predictions that this step needs."""
        ...

    def combine(self, run: Run, predictions: Tensor) -> Tensor:
        """[branches, conditions, n, C, H, W] -> [conditions, n, C, H, W], with weights that sum to one."""
        ...

    def refine(self, run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
        """The latents [n, C, H, W] before the step, as they are or moved."""
        ...


def compose(
    base: BaseModel,
    settings: GenerateSettings,
    concepts: Sequence[tuple[Concept, float]],
    composer: Composer,
    emit: Emit,
    layout: Layout | None = None,
) -> list[Image]:
    """`settings.count` pictures by `composer`; picture i is drawn from the seed `settings.seed + i` on the CPU.

    The base is as before at the end, also after an exception. Raises UsageError for what cannot be composed so, before
    anything is drawn.
    """
    check_request(settings, concepts, layout)
    adapters = [load_concept(concept) for concept, _ in concepts]
    strengths = tuple(strength for _, strength in concepts)
    bank = AdapterBank(base, adapters)
    for receipt in bank.receipts(strengths):
        if warning := receipt.warning():
            emit(Notice(warning))
    with bank.merged(strengths) if composer.folds else bank.installed():
        run = start(base, bank, settings, [concept for concept, _ in concepts], strengths, layout)
        composer.begin(run)
        with torch.no_grad():
            latents = denoise(run, composer, settings, emit)
            return decode(base, latents, settings.vae_tiling)


def check_request(settings: GenerateSettings, concepts: Sequence[tuple[Concept, float]], layout: Layout | None) -> None:
    """Raise UsageError for what no method can compose; nothing is loaded for it."""
    names = [concept.name for concept, _ in concepts]
    if not names:
        raise UsageError("There is no concept to compose.", "Name one or more with <NAME> in the prompt or --concept.")
    if len(names) > LIMIT:
        raise UsageError(f"{len(names)} concepts are too many for one picture.", f"Use at most {LIMIT}.")
    places = spell(settings.prompt, [concept for concept, _ in concepts]).places
    if missing := [name for name in names if not places[name]]:
        raise UsageError(
            f"The prompt does not name <{missing[0]}>, so nothing says what it should do in the picture.",
            f"Write <{missing[0]}> where it belongs, or leave out --concept {missing[0]}.",
        )
    if layout is not None and (unknown := [name for name in layout.boxes if name not in names]):
        raise UsageError(
            f"There is a box for {unknown[0]!r}, which is not among the concepts.", f"They are: {', '.join(names)}."
        )


def start(
    base: BaseModel,
    bank: AdapterBank,
    settings: GenerateSettings,
    concepts: list[Concept],
    strengths: tuple[float, ...],
    layout: Layout | None,
) -> Run:
    """The run that a composer begins with."""
    width, height = settings.size_for(base.sizes)
    factor = base.pipe.vae_scale_factor
    denoiser = Denoiser(base, bank, guided=settings.guidance > 1)
    prompt = spell(settings.prompt, concepts)
    negative = spell(settings.negative_prompt, concepts).text
    size = (height // factor, width // factor)
    return Run(base, denoiser, concepts, strengths, prompt, negative, layout, size, settings.steps, settings.guidance)


def denoise(run: Run, composer: Composer, settings: GenerateSettings, emit: Emit) -> Tensor:
    """The finished latents [n, C, H, W] of all seeds."""
    base, scheduler = run.base, make_scheduler(run.base, settings.scheduler)
    scheduler.set_timesteps(settings.steps, device=base.device)
    generators = [torch.Generator("cpu").manual_seed(settings.seed + i) for i in range(settings.count)]
    shape = (1, base.unet.config["in_channels"], *run.size)
    noise = torch.cat([torch.randn(shape, generator=one, dtype=base.dtype) for one in generators]).to(base.device)
    latents = noise * scheduler.init_noise_sigma
    extra = {"generator": generators} if "generator" in scheduler.step.__code__.co_varnames else {}
    emit(Phase("Drawing"))
    for run.step, timestep in enumerate(scheduler.timesteps):
        latents = composer.refine(run, latents, timestep)
        scaled = scheduler.scale_model_input(latents, timestep)
        combined = composer.combine(run, run.denoiser.predict(scaled, timestep, composer.branches(run)))
        guided = combined[0] if len(combined) == 1 else combined[0] + run.guidance * (combined[1] - combined[0])
        latents = scheduler.step(guided, timestep, latents, **extra, return_dict=False)[0]
        emit(Step(run.step + 1, len(scheduler.timesteps)))
    return latents


def decode(base: BaseModel, latents: Tensor, tiling: bool) -> list[Image]:
    """Pictures of finished latents; raises StudioError where half precision overflowed."""
    vae: Any = base.vae
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
    if tiling:
        vae.enable_tiling()
    try:
        if upcast:
            vae.to(torch.float32)
        shift = vae.config.get("shift_factor") or 0.0
        scaled = latents.to(vae.dtype) / vae.config["scaling_factor"] + shift
        pictures = torch.cat([vae.decode(one[None], return_dict=False)[0] for one in scaled])
    finally:
        if upcast:
            vae.to(torch.float16)
        vae.disable_tiling()
    if not pictures.isfinite().all():
        raise StudioError(
            f"The base {base.source.name!r} drew no numbers: its values overflow in {base.dtype}.",
            "Use a base whose VAE is made for half precision, or --device cpu.",
        )
    return base.pipe.image_processor.postprocess(pictures.float(), output_type="pil")
