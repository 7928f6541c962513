"""`studio generate`: pictures from a prompt, with trained concepts by name."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.bases import BaseSource
from studio.concepts import expand_prompt, whole_word
from studio.events import Emit, Notice, Phase
from studio.home import Home
from studio.library import Library
from studio.pipelines.outputs import describe, output_folder, save_pictures
from studio.pipelines.settings import GenerateSettings
from studio.ui.asking import (
    AttentionOption,
    BaseOption,
    CompileOption,
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
from studio.ui.drawing import Load
from studio.ui.loading import load
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
    compiled: CompileOption = False,
    device: DeviceOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures from a prompt, with any number of trained concepts, and save them as PNG files."""
    from studio.ui.asks import GenerateAsk
    from studio.ui.recording import recorded

    state = Home.resolve(home)
    options = {
        "prompt": prompt, "negative_prompt": negative, "width": width, "height": height, "steps": steps,
        "guidance": guidance, "scheduler": scheduler, "seed": seed, "count": count, "vae_tiling": vae_tiling,
        "offload": offload, "attention": attention, "compiled": compiled,
    }  # fmt: skip
    plan = plan_of(state, options, concept or [], base, out)
    order = GenerateAsk.of(plan.settings, plan.source, plan.concepts).order(device)
    with progress() as shown, recorded(state, order, shown) as job:
        job.result = draw(plan, load, device, job)
    if as_json:
        print_json(job.result)
        return
    for one in job.result["pictures"]:
        typer.echo(one["path"])


@dataclass(frozen=True)
class Plan:
    """What is to be drawn, all of it checked."""

    settings: GenerateSettings
    source: BaseSource
    concepts: Strengths
    folder: Path


def plan_of(state: Home, options: dict[str, Any], given: Sequence[str], base: str | None, out: Path | None) -> Plan:
    """Everything checked that can be before the base is loaded; raises UsageError."""
    concepts = find_concepts(Library(state), given, options["prompt"])
    source = choose_base(base, [one for one, _ in concepts])
    settings = make_settings(options, source)
    check_drawable(settings, source, concepts)
    return Plan(settings, source, concepts, output_folder(state, out, settings.prompt))


def draw(plan: Plan, load: Load, device: str | None, emit: Emit) -> dict[str, Any]:
    """Draw and save; returns a report of it."""
    began, settings = time.monotonic(), plan.settings
    for name in _uncalled(plan):
        emit(Notice(f"Nothing in the prompt calls {name}. Write <{name}> where it belongs."))
    emit(Phase("Loading the base model"))
    model = load(plan.source, device, settings.offload)
    from studio.pipelines.generate import generate as merged

    pictures = merged(model, settings, plan.concepts, emit)
    description = describe(settings, plan.source, plan.concepts)
    paths = save_pictures(pictures, plan.folder, description)
    made = [{"path": path, "seed": settings.seed + n} for n, path in enumerate(paths)]
    size = {"width": pictures[0].width, "height": pictures[0].height}
    return {"pictures": made, "seconds": round(time.monotonic() - began, 2)} | description | size


def _uncalled(plan: Plan) -> list[str]:
    """The names of those that act, and whose trigger the spelled-out prompt does not say."""
    prompt = expand_prompt(plan.settings.prompt, [concept for concept, _ in plan.concepts])
    acting = [concept for concept, strength in plan.concepts if strength]
    return [one.name for one in acting if not re.search(whole_word(one.trigger), prompt, re.IGNORECASE)]
