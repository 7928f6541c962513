"""Composition for Python: a pipeline that is used like those of diffusers, and knows concepts by name."""

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from studio.adapters import Adapter, load_concept
from studio.bank import AdapterBank
from studio.bases import find_base
from studio.concepts import CONCEPT_FILE, Concept, placeholders, read_concept
from studio.errors import UsageError
from studio.events import Event, Notice
from studio.home import Home
from studio.importing import Arrival, import_adapter
from studio.library import Library
from studio.models import BaseModel, load_base, wrap_pipe
from studio.pipelines.compose import Composer, draw
from studio.pipelines.decoding import decode
from studio.pipelines.methods import DEFAULT_METHOD, find_method
from studio.pipelines.request import check_request
from studio.pipelines.schedulers import DEFAULT
from studio.pipelines.settings import ATTENTIONS, GenerateSettings, usual_guidance, usual_width
from studio.regions import Layout

Tensor = torch.Tensor
OnStepEnd = Callable[["ComposedPipeline", int, int, dict[str, Any]], dict[str, Any]]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_PARTS = ("folds", "begin", "branches", "shares", "refine")


@dataclass(frozen=True)
class ComposedOutput:
    """`images`: a list of PIL pictures, an array [n, H, W, 3] or a tensor [n, 3, H, W] in 0..1, or latents."""

    images: Any


class _Turn:
    """A lock, of which a copy has one of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a callback may draw too

    def __reduce__(self) -> tuple[type["_Turn"], tuple[()]]:
        return _Turn, ()


class ComposedPipeline:
    """A base with concepts, called with a prompt in which `<name>` stands for the concept of that name.

    Names that were not added are looked up in the library of `home`. An adapter is read once for as long as its file
    stays as it is. What the user should know of a picture comes as a warning. Threads may share it: drawing changes the
    base for as long as it takes, so their calls take turns.
    """

    def __init__(self, base: BaseModel, home: Path | str | None = None) -> None:
        self.base = base
        self.library = Library(Home.resolve(None if home is None else Path(home)))
        self._added: dict[str, Concept] = {}
        self._loaded: dict[str, tuple[Concept, tuple[int, int], Adapter]] = {}
        self._imported: list[TemporaryDirectory[str]] = []
        self._interrupt = False
        self._turn = _Turn()

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        home: Path | str | None = None,
    ) -> "ComposedPipeline":
        """Load "picturebook", or any SD1.5 or SDXL model by hub id, folder or .safetensors file; raises UsageError."""
        return cls(load_base(find_base(str(base)), device, dtype), home)

    @classmethod
    def from_pipe(cls, pipe: Any, home: Path | str | None = None) -> "ComposedPipeline":
        """Use a StableDiffusionPipeline or StableDiffusionXLPipeline that is loaded; raises UsageError for others."""
        return cls(wrap_pipe(pipe), home)

    def add_concept(
        self,
        concept: Concept | Path | str,
        name: str | None = None,
        class_word: str | None = None,
        trigger: str | None = None,
    ) -> Concept:
        """Let prompts name a concept: one of the library, the folder of one, or an adapter's file with its words.

        A text that is a name in the library means that concept; Path("milo") is always the folder. `trigger` is
        suggested by the file where it is not given. Raises UsageError for what is none.
        """
        if isinstance(concept, Concept):
            found = concept
        elif concept in self.library:
            found = self.library.find(str(concept))
        elif Path(concept, CONCEPT_FILE).is_file():
            found = read_concept(Path(concept))
        elif Path(concept).exists():
            found = self._import(Path(concept), name, class_word, trigger)
        else:
            found = self.library.find(str(concept))
        self._added[found.name] = found
        return found

    def __call__(
        self,
        prompt: str,
        concepts: Mapping[str, float] | Sequence[str] | None = None,
        composer: str | Composer = DEFAULT_METHOD,
        layout: Layout | None = None,
        *,
        styles: Mapping[str, float] | Sequence[str] = (),
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: OnStepEnd | None = None,
        scheduler: str = DEFAULT,
        attention: str = ATTENTIONS[0],
        compiled: bool = False,
    ) -> ComposedOutput:
        """Draw; arguments are named as in diffusers, defaults are those of `studio compose`.

        `concepts` are strengths by name, or names; by default those that the prompt names, at strength 1. `styles` are
        given likewise and act everywhere, by any composer. A list of generators gives one picture each. Without a
        generator, torch's global one is asked for seeds. The callback gets and may return {"latents": ...}; setting
        `pipe._interrupt` in it ends the drawing. `attention` is "sdpa" or "xformers"; where `compiled`, the
        UNet's blocks are, once for all pictures of a size. Raises UsageError.
        """
        if not isinstance(prompt, str):
            raise UsageError(f"The prompt is a {type(prompt).__name__}.", "Give one text, and call again for another.")
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"There is no output type {output_type!r}.", f"Use one of: {', '.join(OUTPUT_TYPES)}.")
        named = [name for name in placeholders(prompt) if name not in styles]
        chosen, riding = self._choose(named if concepts is None else concepts), self._choose(styles)
        if width is None and height is None:
            width = usual_width(self.base.source, len(chosen))
        settings = GenerateSettings(
            prompt, negative_prompt, width, height, num_inference_steps,
            usual_guidance(self.base.source) if guidance_scale is None else guidance_scale, scheduler,
            count=_count(generator, num_images_per_prompt), attention=attention, compiled=compiled,
        )  # fmt: skip
        check_request(settings, chosen, layout, riding)
        with self._turn.lock:
            latents = draw(
                self.base, settings, chosen, self._composer(composer, settings, chosen, layout), _warn, layout,
                _generators(generator, settings.count), self._after_step(callback_on_step_end), riding,
                partial(AdapterBank.of, load=self._load),
            )  # fmt: skip
            if output_type == "latent":
                return ComposedOutput(latents)
            return ComposedOutput(decode(self.base, latents, settings.vae_tiling, output_type))

    def _choose(self, wanted: Mapping[str, float] | Sequence[str]) -> list[tuple[Concept, float]]:
        strengths = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted, 1.0)
        return [(self._added.get(name) or self.library.find(name), float(s)) for name, s in strengths.items()]

    def _load(self, concept: Concept) -> Adapter:
        """Its adapter, read anew where the file's size or time has changed since."""
        state = (concept, concept.file_state)
        known = self._loaded.get(concept.name)
        if known is None or known[:2] != state:
            known = (*state, load_concept(concept))
            self._loaded[concept.name] = known
        return known[2]

    def _composer(
        self,
        composer: str | Composer,
        settings: GenerateSettings,
        chosen: list[tuple[Concept, float]],
        layout: Layout | None,
    ) -> Composer:
        if isinstance(composer, str):
            method = find_method(composer)
            method.check([concept.name for concept, _ in chosen], layout, settings.steps)
            if notice := method.notice(layout):
                _warn(Notice(notice))
            return method.make()
        missing = [part for part in _PARTS if not hasattr(composer, part)]
        if isinstance(composer, type) or missing:
            raise UsageError(
                f"{composer!r} is no composer" + (f": it has no {missing[0]!r}." if missing else ", but a class."),
                "Give an object with what studio.Composer describes, or the name of a method.",
            )
        return composer

    def _import(self, path: Path, name: str | None, class_word: str | None, trigger: str | None) -> Concept:
        """The adapter in `path` as a concept that lives as long as this pipeline."""
        if name is None or class_word is None:
            raise UsageError(
                f"{path} is an adapter, which needs words.", "Give name='milo', class_word='cat' and perhaps trigger=."
            )
        folder = TemporaryDirectory(prefix="studio-concept-")
        self._imported.append(folder)
        base = self.base.family  # which the file is checked against
        return import_adapter(Library(Home(Path(folder.name))), Arrival(path, name, class_word, trigger, base))[0]

    def _after_step(self, callback: OnStepEnd | None) -> Callable[[int, Tensor, Tensor], Tensor | None] | None:
        self._interrupt = False
        if callback is None:
            return None
        if unknown := set(getattr(callback, "tensor_inputs", ())) - {"latents"}:
            raise UsageError(f"The callback asks for {sorted(unknown)}.", "There are the latents alone.")

        def after(step: int, timestep: Tensor, latents: Tensor) -> Tensor | None:
            returned = callback(self, step, int(timestep), {"latents": latents}) or {}
            return None if self._interrupt else returned.get("latents", latents)

        return after


def _count(generator: torch.Generator | list[torch.Generator] | None, images: int) -> int:
    if not isinstance(generator, list):
        return images
    if images not in (1, len(generator)):
        raise UsageError(f"{len(generator)} generators are given for {images} pictures.", "Give one a picture.")
    return len(generator)


def _generators(
    given: torch.Generator | list[torch.Generator] | None, count: int
) -> torch.Generator | list[torch.Generator]:
    if given is not None:
        return given
    seeds = torch.randint(2**62, (count,)).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _warn(event: Event) -> None:
    if isinstance(event, Notice):
        warnings.warn(event.message, UserWarning, stacklevel=4)
