"""`studio generate`: pictures from a prompt, with trained concepts by name."""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from studio.bases import EMBEDDED, BaseSource, find_base, source_sizes
from studio.concepts import Concept, expand_prompt, placeholders
from studio.errors import UsageError
from studio.events import Phase
from studio.home import Home
from studio.library import Library
from studio.pipelines.outputs import describe, output_folder, save_pictures
from studio.pipelines.schedulers import DEFAULT, SCHEDULERS
from studio.pipelines.settings import GenerateSettings, usual_guidance
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress

Strengths = list[tuple[Concept, float]]


def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to draw; <milo> stands for the concept milo.", show_default=False)
    ],
    concept: Annotated[
        list[str] | None,
        typer.Option(help="A concept by name, with its strength if not 1: milo or milo=0.8. Can be repeated."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help=f"picturebook, sd15, sdxl, a hub id, folder or .safetensors. Default: the concepts', or {EMBEDDED}."
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(help="In pixels. Default: the base's own.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels. Default: the base's own.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt. Default: by base, 2.5 to 7.5.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    scheduler: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULERS)}.")] = DEFAULT,
    seed: Annotated[int | None, typer.Option(help="Picture i has the seed SEED + i. Default: by chance.")] = None,
    count: Annotated[int, typer.Option(help="How many pictures.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures. Default: a new one in the state folder.")
    ] = None,
    vae_tiling: Annotated[
        bool, typer.Option("--vae-tiling", help="Decode large pictures in tiles: less memory.")
    ] = False,
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep only the part at work on the GPU: less memory.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1, mps or cpu. Default: the best there is.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures from a prompt, with any number of trained concepts, and save them as PNG files."""
    state = Home.resolve(home)
    concepts = _find_concepts(Library(state), concept or [], prompt)
    source = _choose_base(base, [one for one, _ in concepts])
    settings = GenerateSettings(
        prompt=prompt,
        negative_prompt=negative,
        width=width,
        height=height,
        steps=steps,
        guidance=usual_guidance(source) if guidance is None else guidance,
        scheduler=scheduler,
        seed=random.randrange(2**32) if seed is None else seed,
        count=count,
        vae_tiling=vae_tiling,
        offload=offload,
    )
    _check(settings, source, concepts)
    folder = output_folder(state, out, prompt)
    _run(settings, source, concepts, folder, device, as_json)


def _run(
    settings: GenerateSettings, source: BaseSource, concepts: Strengths, folder: Path, device: str | None, as_json: bool
) -> None:
    began = time.monotonic()
    with progress() as emit:
        emit(Phase("Loading the base model"))
        from studio.models import load_base
        from studio.pipelines.generate import generate as draw

        model = load_base(source, device, offload=settings.offload)
        pictures = draw(model, settings, concepts, emit)
    description = describe(settings, source, concepts)
    paths = save_pictures(pictures, folder, description)
    if as_json:
        made = [{"path": path, "seed": settings.seed + n} for n, path in enumerate(paths)]
        size = {"width": pictures[0].width, "height": pictures[0].height}
        print_json({"pictures": made, "seconds": round(time.monotonic() - began, 2)} | description | size)
        return
    for path in paths:
        typer.echo(path)


def _find_concepts(library: Library, wanted: Sequence[str], prompt: str) -> Strengths:
    """Those of `--concept` with their strengths, and with strength 1 those that only the prompt names."""
    found: dict[str, tuple[Concept, float]] = {}
    for text in wanted:
        name, strength = _parse(text)
        if name in found:
            raise UsageError(f"--concept {name} is given twice.", "Give each concept once.")
        found[name] = (library.find(name), strength)
    for name in placeholders(prompt):
        if name not in found and ":" not in name:  # "<lora:...>" is another tool's way, explained by expand_prompt
            found[name] = (library.find(name), 1.0)
    return list(found.values())


def _parse(text: str) -> tuple[str, float]:
    name, given, number = text.partition("=")
    try:
        strength = float(number) if given else 1.0
    except ValueError:
        strength = float("nan")
    if not -10 <= strength <= 10:
        raise UsageError(f"--concept {text}: {number!r} is no strength.", f"Write a number, as in {name}=0.8.")
    return name, strength


def _choose_base(given: str | None, concepts: Sequence[Concept]) -> BaseSource:
    """`given`, else the base of all concepts, else the embedded one."""
    bases = sorted({concept.base for concept in concepts})
    if given is None and len(bases) > 1:
        pairs = ", ".join(f"{concept.name}: {concept.base}" for concept in concepts)
        raise UsageError(f"The concepts were trained on different bases ({pairs}).", "Choose one with --base.")
    return find_base(given or (bases[0] if bases else EMBEDDED))


def _check(settings: GenerateSettings, source: BaseSource, concepts: Strengths) -> None:
    """Refuse now what would otherwise fail after the base is loaded."""
    from studio.adapters import check_family, load_concept

    settings.size_for(source_sizes(source))
    for text in (settings.prompt, settings.negative_prompt):
        expand_prompt(text, [concept for concept, _ in concepts])
    for concept, _ in concepts:
        check_family(load_concept(concept, values=False), source.family, source.name)
