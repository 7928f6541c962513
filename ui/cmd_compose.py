"""`studio compose`: several concepts in one picture, by a method of choice or by all of them side by side."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.bases import BaseSource, source_sizes
from studio.concepts import placeholders
from studio.errors import UsageError
from studio.events import Emit, Event, Notice, Phase
from studio.home import Home
from studio.library import Library
from studio.pipelines.contact_sheet import contact_sheet
from studio.pipelines.methods import DEFAULT_METHOD, METHODS, Method, find_method
from studio.pipelines.outputs import STYLIZE, describe, output_folder, save_pictures, save_sheet
from studio.pipelines.recall import Recalled, RecalledConcept, recall
from studio.pipelines.request import check_request
from studio.pipelines.settings import GenerateSettings
from studio.regions import Layout, parse_box, read_layout
from studio.ui.asking import (
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
    StyleOption,
    TilingOption,
    WidthOption,
    check_drawable,
    choose_base,
    find_concepts,
    find_styles,
    make_settings,
)
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class _Plan:
    """What is to be drawn, all of it checked; `notices` are what the user should know of it."""

    settings: GenerateSettings
    source: BaseSource
    concepts: Strengths
    styles: Strengths
    methods: list[Method]
    layout: Layout | None
    folder: Path
    notices: list[str]


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
    out: OutOption = None,
    vae_tiling: TilingOption = None,
    offload: OffloadOption = False,
    device: DeviceOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures in which several trained concepts appear together, and save them as PNG files."""
    state = Home.resolve(home)
    told = None if from_picture is None else recall(from_picture)
    if told is not None and told.method == STYLIZE:
        raise UsageError(f"{from_picture} was drawn by studio stylize.", f"Use: studio stylize --from {from_picture}")
    methods = _methods(method, compare, told)
    places = _places(box or [], layout, told, prompt)
    options = {
        "prompt": prompt, "width": width, "height": height, "steps": steps, "guidance": guidance, "seed": seed,
        "negative_prompt": negative, "scheduler": scheduler, "count": count, "vae_tiling": vae_tiling,
        "offload": offload,
    }  # fmt: skip
    plan = _plan(state, options, concept or [], style or [], base, methods, places, out, told)
    _run(plan, device, as_json, compare=compare)


def _methods(name: str | None, compare: bool, told: Recalled | None) -> list[Method]:
    if compare and name is not None:
        raise UsageError("--compare draws with every method.", "Leave out --method, or --compare.")
    if compare:
        return list(METHODS.values())
    return [find_method(name or (told.method if told else DEFAULT_METHOD))]


def _places(boxes: Sequence[str], file: Path | None, told: Recalled | None, prompt: str | None) -> Layout | None:
    """The layout that is given, else the picture's: of the latter what a prompt that is given still names."""
    if boxes and file is not None:
        raise UsageError("There are boxes in --box and in --layout.", "Give one of them.")
    if file is not None:
        return read_layout(file)
    found = {}
    for name, one in map(parse_box, boxes):
        if name in found:
            raise UsageError(f"--box {name} is given twice.", "Give each concept one box.")
        found[name] = one
    if not found and told is not None and told.layout is not None:
        named = placeholders(told.prompt if prompt is None else prompt)
        found = {name: one for name, one in told.layout.boxes.items() if name in named}
    return Layout(found) if found else None


def _concepts(
    library: Library, given: Sequence[str], styles: Strengths, prompt: str, told: Recalled | None
) -> Strengths:
    """Those given, and those of the picture that the prompt names."""
    named = placeholders(prompt)
    recalled = [one for one in (told.concepts if told else ()) if one.name in named]
    return find_concepts(library, _wanted(library, given, recalled, "--concept"), prompt, styles)


def _styles(library: Library, given: Sequence[str], told: Recalled | None) -> Strengths:
    """Those given, and those of the picture."""
    return find_styles(library, _wanted(library, given, told.styles if told else (), "--style"))


def _wanted(library: Library, given: Sequence[str], recalled: Sequence[RecalledConcept], option: str) -> list[str]:
    """What is given, which outweighs what is recalled; of the latter each has to be the same as then."""
    wanted: list[str] = []
    for one in recalled:
        again = [text for text in given if text.partition("=")[0] == one.name]
        if not again:
            one.check(library.find(one.name), f"{option} {one.name}={one.strength:g}")
        wanted += again or [f"{one.name}={one.strength!r}"]
    return [*wanted, *(text for text in given if text not in wanted)]


def _plan(
    state: Home,
    options: dict[str, Any],
    given: Sequence[str],
    styled: Sequence[str],
    base: str | None,
    methods: list[Method],
    layout: Layout | None,
    out: Path | None,
    told: Recalled | None,
) -> _Plan:
    """Everything checked that can be before the base is loaded; raises UsageError."""
    if told is not None:
        options = {"prompt": told.prompt} | told.settings | {k: v for k, v in options.items() if v is not None}
    if options["prompt"] is None:
        raise UsageError("There is no prompt.", "Say what to draw, or give a picture with --from.")
    styles = _styles(Library(state), styled, told)
    concepts = _concepts(Library(state), given, styles, options["prompt"], told)
    everyone = [*concepts, *styles]
    source = choose_base(base or (told.base if told else None), [one for one, _ in everyone])
    settings = make_settings(options, source)
    check_request(settings, concepts, layout, styles)
    check_drawable(settings, source, everyone)
    names = [concept.name for concept, _ in concepts]
    if layout is not None:
        sizes = source_sizes(source)
        width, height = settings.size_for(sizes)
        layout.masks(list(layout.boxes), height // sizes.factor, width // sizes.factor)
    notices = [told.notice() if told else None]
    able = []
    if not concepts:
        methods = [METHODS["merge"]]
        notices.append("The prompt names no concept: the style draws alone, with every method the same.")
    for method in methods:
        try:
            method.check(names, layout, settings.steps)
        except UsageError as error:
            if len(methods) == 1:
                raise
            notices.append(_left_out(method, error))
            continue
        able.append(method)
        notices.append(method.notice(layout))
    folder = output_folder(state, out, settings.prompt)
    return _Plan(settings, source, concepts, styles, able, layout, folder, [one for one in notices if one])


def _left_out(method: Method, error: UsageError) -> str:
    return f"{method.name} is left out. {error.problem}"


def _run(plan: _Plan, device: str | None, as_json: bool, *, compare: bool) -> None:
    began, settings = time.monotonic(), plan.settings
    with progress() as emit:
        for notice in plan.notices:
            emit(Notice(notice))
        drawn = _draw(plan, device, emit)
    paths: dict[str, list[Path]] = {}
    for name, pictures in drawn.items():
        told = describe(settings, plan.source, plan.concepts, name, plan.layout, plan.styles)
        paths[name] = save_pictures(pictures, plan.folder / name if compare else plan.folder, told)
    description = describe(settings, plan.source, plan.concepts, ", ".join(drawn), plan.layout, plan.styles)
    sheet = None
    if compare:
        sheet = save_sheet(contact_sheet(drawn, columns=settings.count), plan.folder, description)
    if as_json:
        made = [
            {"path": path, "seed": settings.seed + n, "method": name}
            for name, several in paths.items()
            for n, path in enumerate(several)
        ]
        first = next(iter(drawn.values()))[0]
        report = {"pictures": made, "sheet": sheet, "seconds": round(time.monotonic() - began, 2)}
        print_json(report | description | {"width": first.width, "height": first.height})
        return
    for path in [path for several in paths.values() for path in several]:
        typer.echo(path)
    if sheet is not None:
        typer.echo(sheet)


def _draw(plan: _Plan, device: str | None, emit: Emit) -> dict[str, list["Image"]]:
    """Pictures by method; of several methods those are left out that cannot draw this."""
    emit(Phase("Loading the base model"))
    from studio.models import load_base
    from studio.pipelines.compose import compose as draw

    model = load_base(plan.source, device, offload=plan.settings.offload)
    drawn: dict[str, list[Image]] = {}
    refused: list[UsageError] = []
    said: set[Event] = set()

    def once(event: Event) -> None:
        if event not in said or not isinstance(event, Notice):
            emit(event)
        said.add(event)

    for method in plan.methods:
        if len(plan.methods) > 1:
            emit(Phase(f"Method {method.name}"))
        try:
            drawn[method.name] = draw(
                model, plan.settings, plan.concepts, method.make(), once, plan.layout, plan.styles
            )
        except UsageError as error:
            if len(plan.methods) == 1:
                raise
            refused.append(error)
            emit(Notice(_left_out(method, error)))
    if not drawn:
        raise refused[0]
    return drawn
