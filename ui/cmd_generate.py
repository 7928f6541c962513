"""`studio generate`: pictures from a prompt, with trained concepts by name."""

import time
from pathlib import Path
from typing import Annotated

import typer

from studio.bases import BaseSource
from studio.events import Phase
from studio.home import Home
from studio.library import Library
from studio.pipelines.outputs import describe, output_folder, save_pictures
from studio.pipelines.settings import GenerateSettings
from studio.ui.asking import (
    AttentionOption,
    BaseOption,
    ConceptOption,
    CountOption,
    DeviceOption,
    GuidanceOption,
    HeightOption,
    NegativeOption,
    OffloadOption,
    OutOption,
    SchedulerOption,
    SeedOption,
    StepsOption,
    Strengths,
    TilingOption,
    WidthOption,
    check_drawable,
    choose_base,
    find_concepts,
    make_settings,
)
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress


def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to draw; <milo> stands for the concept milo.", show_default=False)
    ],
    concept: ConceptOption = None,
    base: BaseOption = None,
    width: WidthOption = None,
    height: HeightOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    negative: NegativeOption = None,
    scheduler: SchedulerOption = None,
    seed: SeedOption = None,
    count: CountOption = None,
    out: OutOption = None,
    vae_tiling: TilingOption = None,
    offload: OffloadOption = False,
    attention: AttentionOption = None,
    device: DeviceOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures from a prompt, with any number of trained concepts, and save them as PNG files."""
    state = Home.resolve(home)
    concepts = find_concepts(Library(state), concept or [], prompt)
    source = choose_base(base, [one for one, _ in concepts])
    settings = make_settings(
        {
            "prompt": prompt, "negative_prompt": negative, "width": width, "height": height, "steps": steps,
            "guidance": guidance, "scheduler": scheduler, "seed": seed, "count": count, "vae_tiling": vae_tiling,
            "offload": offload, "attention": attention,
        },
        source,
    )  # fmt: skip
    check_drawable(settings, source, concepts)
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
