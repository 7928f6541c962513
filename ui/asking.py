"""What the commands that draw have in common: their options, and finding the concepts and the base that are meant."""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.bases import EMBEDDED, BaseSource, find_base, source_sizes
from studio.concepts import Concept, expand_prompt, placeholders
from studio.errors import UsageError
from studio.library import Library
from studio.pipelines.schedulers import DEFAULT, SCHEDULERS
from studio.pipelines.settings import ATTENTIONS, GenerateSettings, usual_guidance

if TYPE_CHECKING:
    from studio.adapters import Adapter

Strengths = Sequence[tuple[Concept, float]]

ConceptOption = Annotated[
    list[str] | None,
    typer.Option(help="A concept by name, with its strength if not 1: milo or milo=0.8. Can be repeated."),
]
StyleOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A concept that rides along as a style, with its strength if not 1: neon or neon=0.8. It acts everywhere,"
        " and its words are added to the prompt. Can be repeated."
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        help=f"picturebook, sd15, sdxl, a hub id, folder or .safetensors. Default: the concepts', or {EMBEDDED}."
    ),
]
WidthOption = Annotated[int | None, typer.Option(help="In pixels. Default: the base's own.")]
HeightOption = Annotated[int | None, typer.Option(help="In pixels. Default: the base's own.")]
StepsOption = Annotated[int | None, typer.Option(help="Denoising steps. Default: 25.")]
GuidanceOption = Annotated[
    float | None, typer.Option(help="How closely to follow the prompt. Default: by base, 2.5 to 7.5.")
]
NegativeOption = Annotated[str | None, typer.Option(help="What not to draw.")]
SchedulerOption = Annotated[str | None, typer.Option(help=f"One of {', '.join(SCHEDULERS)}. Default: {DEFAULT}.")]
SeedOption = Annotated[int | None, typer.Option(help="Picture i has the seed SEED + i. Default: by chance.")]
CountOption = Annotated[int | None, typer.Option(help="How many pictures. Default: 1.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the pictures. Default: a new one in the state folder.")
]
TilingOption = Annotated[
    bool | None,
    typer.Option("--vae-tiling/--no-vae-tiling", help="Decode large pictures in tiles: less memory. Default: no."),
]
OffloadOption = Annotated[bool, typer.Option("--offload", help="Keep only the part at work on the GPU: less memory.")]
AttentionOption = Annotated[str | None, typer.Option(help=f"{' or '.join(ATTENTIONS)}. Default: {ATTENTIONS[0]}.")]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the network first, by torch.compile: for many pictures of one size.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cuda, cuda:1, mps or cpu. Default: the best there is.")]


def find_concepts(library: Library, wanted: Sequence[str], prompt: str, styles: Strengths = ()) -> Strengths:
    """Those of `--concept` with their strengths, and with strength 1 those that only the prompt names; without
    `styles`, which it may name too.

    Raises UsageError for names that are unknown or given twice, and for what is no strength.
    """
    found = _given(library, wanted, "--concept")
    riding = [style.name for style, _ in styles]
    for name in placeholders(prompt):
        if name in found or name in riding or ":" in name:  # "<lora:...>" is another tool's way: see expand_prompt
            continue
        found[name] = (library.find(name), 1.0)
    return list(found.values())


def find_styles(library: Library, wanted: Sequence[str]) -> Strengths:
    """Those of `--style` with their strengths; raises UsageError as `find_concepts` does."""
    return list(_given(library, wanted, "--style").values())


def _given(library: Library, wanted: Sequence[str], option: str) -> dict[str, tuple[Concept, float]]:
    found: dict[str, tuple[Concept, float]] = {}
    for text in wanted:
        name, strength = _parse(text, option)
        if name in found:
            raise UsageError(f"{option} {name} is given twice.", "Give each concept once.")
        found[name] = (library.find(name), strength)
    return found


def _parse(text: str, option: str) -> tuple[str, float]:
    name, given, number = text.partition("=")
    try:
        strength = float(number) if given else 1.0
    except ValueError:
        strength = float("nan")
    if not -10 <= strength <= 10:
        raise UsageError(f"{option} {text}: {number!r} is no strength.", f"Write a number, as in {name}=0.8.")
    return name, strength


def choose_base(given: str | None, concepts: Sequence[Concept]) -> BaseSource:
    """`given`, else the base of all concepts, else the embedded one; raises UsageError where they differ."""
    bases = sorted({concept.base for concept in concepts})
    if given is None and len(bases) > 1:
        pairs = ", ".join(f"{concept.name}: {concept.base}" for concept in concepts)
        raise UsageError(f"The concepts were trained on different bases ({pairs}).", "Choose one with --base.")
    return find_base(given or (bases[0] if bases else EMBEDDED))


def make_settings(options: Mapping[str, Any], source: BaseSource) -> GenerateSettings:
    """The settings by name, None for those that were not given: the seed is then by chance, the guidance by base."""
    given = {name: value for name, value in options.items() if value is not None}
    return GenerateSettings(**{"guidance": usual_guidance(source), "seed": random.randrange(2**32)} | given)


def check_drawable(settings: GenerateSettings, source: BaseSource, concepts: Strengths) -> None:
    """Refuse now what would otherwise fail after the base is loaded; raises UsageError."""
    from studio.adapters import check_family

    settings.size_for(source_sizes(source))
    for text in (settings.prompt, settings.negative_prompt):
        expand_prompt(text, [concept for concept, _ in concepts])
    for concept, _ in concepts:
        check_family(_outline(concept, concept.file_state), source.family, source.name)


@lru_cache(maxsize=64)
def _outline(concept: Concept, state: tuple[int, int]) -> "Adapter":
    """The adapter of `concept` without values; `state` is that of its file."""
    from studio.adapters import load_concept

    return load_concept(concept, values=False)
