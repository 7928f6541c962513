"""Pictures of several concepts: one loop for every method, which is a plug-in that plans branches and combines them.

z <- refine(z);  E_b = model(z, branch b);  E = sum of W_b E_b;  z <- step(u + guidance (c - u), z)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image

from studio.bank import AdapterBank
from studio.concepts import Concept
from studio.errors import StudioError, UsageError
from studio.events import Emit, Notice, Phase, Step
from studio.kernels.blend import blend
from studio.models import BaseModel
from studio.pipelines.attention_backend import attending
from studio.pipelines.compiled import compiled_blocks
from studio.pipelines.decoding import decode
from studio.pipelines.denoiser import Branch, Denoiser
from studio.pipelines.methods import METHODS
from studio.pipelines.request import check_request, notices, words_of
from studio.pipelines.schedulers import make_scheduler
from studio.pipelines.settings import GenerateSettings
from studio.regions import Layout
from studio.spans import Spelled, spell

Tensor = torch.Tensor
Strengths = Sequence[tuple[Concept, float]]
BankOf = Callable[[BaseModel, Sequence[Concept]], AdapterBank]
AfterStep = Callable[[int, Tensor, Tensor], Tensor | None]  # (step, timestep, latents) -> latents; None ends the loop


@dataclass
class Run:
    """What a composer knows of a composition: the concepts with their strengths, the prompt with their places in it,
    boxes if there are any, and where the loop stands (`step` of `steps`, from 0); in it all chance comes from
    `generators`."""

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
    scheduler: Any
    step: int = 0
    generators: list[torch.Generator] | torch.Generator | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """How much of the loop is done, from 0 to below 1; some samplers take more than `steps` turns."""
        return self.step / len(self.scheduler.timesteps)

    @property
    def names(self) -> list[str]:
        """Of the concepts, in the order of the bank."""
        return [concept.name for concept in self.concepts]

    @property
    def classes(self) -> dict[str, str]:
        """For each concept the words by which the base knows what kind of thing it is."""
        return {concept.name: concept.class_word or concept.phrase for concept in self.concepts}

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

    def shares(self, run: Run, predictions: Tensor) -> Tensor:
        """What each of the predictions [branches, conditions, n, C, H, W] weighs: [branches], or [branches, n, H, W] of
        which all but the first may be 1. They sum to one."""
        ...

    def refine(self, run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
        """The latents [n, C, H, W] before the step, as they are or moved."""
        ...


def compose(
    base: BaseModel,
    settings: GenerateSettings,
    concepts: Strengths,
    composer: Composer,
    emit: Emit,
    layout: Layout | None = None,
    styles: Strengths = (),
    bank_of: BankOf = AdapterBank.of,
) -> list[Image]:
    """`settings.count` pictures by `composer`; picture i is drawn from the seed `settings.seed + i` on the CPU.

    `styles` act everywhere, on every branch and word, at their strengths: the composer sees the concepts alone;
    `bank_of` gives the adapters. The base is as before at the end, also after an exception. Raises UsageError for what
    cannot be composed so, before anything is drawn.
    """
    latents = draw(base, settings, concepts, composer, emit, layout, styles=styles, bank_of=bank_of)
    return decode(base, latents, settings.vae_tiling)


def draw(
    base: BaseModel,
    settings: GenerateSettings,
    concepts: Strengths,
    composer: Composer,
    emit: Emit,
    layout: Layout | None = None,
    generators: Sequence[torch.Generator] | torch.Generator | None = None,
    after_step: AfterStep | None = None,
    styles: Strengths = (),
    bank_of: BankOf = AdapterBank.of,
) -> Tensor:
    """`compose` without decoding: latents [count, C, h, w].

    All chance comes from `generators`, one a picture or one for all, where they are given in place of seeds. Without a
    concept, what there is to compose is plainly drawn.
    """
    composer = composer if concepts else cast(Composer, METHODS["merge"].make())
    with opened(base, settings, concepts, composer, emit, layout, styles, bank_of) as run, torch.no_grad():
        return denoise(run, composer, settings, emit, generators, after_step)


@contextmanager
def opened(
    base: BaseModel,
    settings: GenerateSettings,
    concepts: Strengths,
    composer: Composer,
    emit: Emit,
    layout: Layout | None = None,
    styles: Strengths = (),
    bank_of: BankOf = AdapterBank.of,
) -> Iterator[Run]:
    """A run that `composer` has begun, with the adapters on the base while the block runs; raises UsageError."""
    check_request(settings, concepts, layout, styles)
    known, strengths = [one for one, _ in concepts], tuple(strength for _, strength in concepts)
    bank = bank_of(base, known)
    riders = bank_of(base, [one for one, _ in styles])
    if not composer.folds and bank.shares(riders):
        raise UsageError(
            "A style and a concept of this picture are one adapter: it cannot act both by place and everywhere.",
            "Give the style as a concept too (--concept), or take the method merge.",
        )
    receipts = [*bank.receipts(strengths), *riders.receipts([strength for _, strength in styles])]
    warnings = [receipt.warning() for receipt in receipts]
    with (
        attending(base, settings.attention),
        _acting(bank, strengths, riders, [strength for _, strength in styles], composer.folds),
    ):
        adapters = [*bank.adapters, *riders.adapters]
        scheduler = make_scheduler(base, settings.scheduler, adapters)
        run = start(base, bank, settings, known, strengths, scheduler, layout, styles)
        told = (run.prompt.text, run.negative)
        for message in (*filter(None, warnings), *notices(base, settings, told, layout, styles)):
            emit(Notice(message))
        if settings.compiled:
            run.denoiser.compiled = compiled_blocks(base, bank.hooked, emit)
        composer.begin(run)
        yield run
        if run.denoiser.compiled is not None and not run.denoiser.compiled.forwards:
            emit(Notice("Nothing was compiled: every step of this method looks into the network."))


@contextmanager
def _acting(
    bank: AdapterBank, strengths: Sequence[float], riders: AdapterBank, style_strengths: Sequence[float], folds: bool
) -> Iterator[None]:
    """Riders are in the weights, where they cost nothing; the bank is with them, or gated."""
    if folds:
        with AdapterBank(bank.base, [*bank.adapters, *riders.adapters]).merged([*strengths, *style_strengths]):
            yield
    else:  # installed first: what depends on the base's own weights is computed then
        with bank.installed(), riders.merged(style_strengths):
            yield


def start(
    base: BaseModel,
    bank: AdapterBank,
    settings: GenerateSettings,
    concepts: list[Concept],
    strengths: tuple[float, ...],
    scheduler: Any,
    layout: Layout | None,
    styles: Strengths = (),
) -> Run:
    """The run that a composer begins with: the words of `styles` belong to its prompt, and nothing else of them."""
    width, height = settings.size_for(base.sizes)
    factor = base.pipe.vae_scale_factor
    denoiser = Denoiser(base, bank, guided=settings.guidance > 1 and not base.guidance_width)
    if base.guidance_width:
        told = base.pipe.get_guidance_scale_embedding(
            torch.tensor([settings.guidance - 1]), embedding_dim=base.guidance_width
        )
        denoiser.told = told.to(base.device, base.dtype)
    known = [*concepts, *(style for style, _ in styles)]
    prompt = spell(settings.prompt, known).with_words(words_of(styles))
    negative = spell(settings.negative_prompt, known).text
    size = (height // factor, width // factor)
    scheduler.set_timesteps(settings.steps, device=base.device)
    return Run(
        base,
        denoiser,
        concepts,
        strengths,
        prompt,
        negative,
        layout,
        size,
        settings.steps,
        settings.guidance,
        scheduler,
    )


def denoise(
    run: Run,
    composer: Composer,
    settings: GenerateSettings,
    emit: Emit,
    generators: Sequence[torch.Generator] | torch.Generator | None = None,
    after_step: AfterStep | None = None,
) -> Tensor:
    """The finished latents [n, C, H, W] of all seeds; raises StudioError where `shares` do not fit."""
    base, scheduler = run.base, run.scheduler
    if generators is None:
        generators = [torch.Generator("cpu").manual_seed(settings.seed + i) for i in range(settings.count)]
    elif isinstance(generators, Sequence):
        generators = list(generators)
    shape = (settings.count, base.unet.config["in_channels"], *run.size)
    latents = randn_tensor(shape, generators, base.device, base.dtype) * scheduler.init_noise_sigma
    run.generators = generators
    emit(Phase("Drawing"))
    for run.step, timestep in enumerate(scheduler.timesteps):
        latents = composer.refine(run, latents, timestep)
        scaled = scheduler.scale_model_input(latents, timestep)
        predictions = run.denoiser.predict(scaled, timestep, composer.branches(run))
        latents = advance(run, scheduler, _guided(run, composer, predictions), timestep, latents)
        emit(Step(run.step + 1, len(scheduler.timesteps)))
        if after_step is not None:
            moved = after_step(run.step, timestep, latents)
            if moved is None:
                break
            latents = moved
    return latents


def _guided(run: Run, composer: Composer, predictions: Tensor) -> Tensor:
    """The predictions blended by the composer's shares, and guided: [n, C, H, W]."""
    shares = composer.shares(run, predictions)
    sizes = (len(predictions), *(predictions.shape[axis] for axis in (2, 4, 5)))
    told = shares.shape if shares.dim() > 1 else (*shares.shape, 1, 1, 1)
    fit = len(told) == 4 and told[0] == sizes[0] and all(a in (1, b) for a, b in zip(told, sizes, strict=True))
    if not fit or (run.step == 0 and float((shares.sum(0) - 1).abs().max()) > 1e-3):
        raise StudioError(
            f"{type(composer).__name__}.shares made {list(shares.shape)} for {list(predictions.shape)}, which sum to"
            f" {float(shares.sum(0).mean()):.3g}.",
            f"They have to be [{sizes[0]}], or {list(sizes)} with 1 for what they do not tell apart, and sum to 1.",
        )
    return blend(predictions, shares.view(told).to(predictions.device), run.guidance)


def advance(run: Run, scheduler: Any, guided: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """The latents [n, C, H, W] after a step of `scheduler`, by a guided prediction of that shape."""
    extra = {"generator": run.generators} if "generator" in scheduler.step.__code__.co_varnames else {}
    return scheduler.step(guided, timestep, latents, **extra, return_dict=False)[0]
