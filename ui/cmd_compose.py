"""`studio compose`: several concepts in one picture, by a method of choice or by all of them side by side."""

from pathlib import Path
from typing import Annotated

import typer

from studio.errors import UsageError
from studio.home import Home
from studio.library import Library
from studio.pipelines.methods import DEFAULT_METHOD, METHODS
from studio.pipelines.outputs import STYLIZE
from studio.pipelines.recall import recall
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
    StyleOption,
    TilingOption,
    WidthOption,
)
from studio.ui.composing import Plan, make_plan, methods_of, places_of
from studio.ui.drawing import BestOf, draw_and_save
from studio.ui.judging import BestOfOption, ClipOption, ReferencesOption, reference_folders
from studio.ui.loading import bank_of, load
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress


def compose(
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to draw; <milo> stands for the concept milo. With --from: the picture's."),
    ] = None,
    concept: ConceptOption = None,
    style: StyleOption = None,
    method: Annotated[str | None, typer.Option(help=f"One of {', '.join(METHODS)}. Default: {DEFAULT_METHOD}.")] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a concept belongs: NAME=LEFT,TOP,RIGHT,BOTTOM in fractions of the canvas, as in"
            " milo=0,0.2,0.5,1. Can be repeated; a later one is in front."
        ),
    ] = None,
    layout: Annotated[Path | None, typer.Option(help='Boxes from a JSON file {"milo": [0, 0.2, 0.5, 1]}.')] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw with every method, and all side by side in one labelled PNG.")
    ] = False,
    from_picture: Annotated[
        Path | None,
        typer.Option("--from", help="Take everything that is not given from a PNG that studio compose drew."),
    ] = None,
    base: BaseOption = None,
    width: WidthOption = None,
    height: HeightOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    negative: NegativeOption = None,
    scheduler: SchedulerOption = None,
    seed: SeedOption = None,
    count: CountOption = None,
    best_of: BestOfOption = 1,
    clip: ClipOption = None,
    references: ReferencesOption = None,
    out: OutOption = None,
    vae_tiling: TilingOption = None,
    offload: OffloadOption = False,
    attention: AttentionOption = None,
    compiled: CompileOption = False,
    device: DeviceOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures in which several trained concepts appear together, and save them as PNG files."""
    state = Home.resolve(home)
    told = None if from_picture is None else recall(from_picture)
    if told is not None and told.method == STYLIZE:
        raise UsageError(f"{from_picture} was drawn by studio stylize.", f"Use: studio stylize --from {from_picture}")
    methods = methods_of(method, compare, told)
    places = places_of(box or [], layout, told, prompt)
    options = {
        "prompt": prompt, "width": width, "height": height, "steps": steps, "guidance": guidance, "seed": seed,
        "negative_prompt": negative, "scheduler": scheduler, "count": count, "vae_tiling": vae_tiling,
        "offload": offload, "attention": attention, "compiled": compiled,
    }  # fmt: skip
    plan = make_plan(state, options, concept or [], style or [], base, methods, places, out, told)
    folders = reference_folders([one for one, _ in plan.concepts], references or [])
    chosen = BestOf.planned(best_of, clip, folders, plan, Library(state))
    _run(plan, chosen, state, device, as_json, compare=compare)


def _run(plan: Plan, best_of: BestOf, state: Home, device: str | None, as_json: bool, *, compare: bool) -> None:
    from studio.ui.asks import ComposeAsk
    from studio.ui.recording import recorded

    order = ComposeAsk.of(plan, best_of, compare=compare).order(device)
    with progress() as shown, recorded(state, order, shown) as job:
        drawn = draw_and_save(plan, best_of, load, bank_of, device, job, sheet=compare)
        job.result = drawn.report()
    if as_json:
        print_json(job.result)
        return
    for path in [path for several in drawn.paths.values() for path in several]:
        typer.echo(path)
    if drawn.sheet is not None:
        typer.echo(drawn.sheet)
