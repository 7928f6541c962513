"""`studio compose`: several concepts in one picture, by a method of choice or by all of them side by side."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.bases import EMBEDDED
from studio.concepts import Concept
from studio.errors import UsageError
from studio.events import Emit, Event, Notice, Phase
from studio.home import Home
from studio.library import Library
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.methods import DEFAULT_METHOD, METHODS, Method
from studio.pipelines.outputs import STYLIZE, describe, save_pictures, save_sheet
from studio.pipelines.recall import recall
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
    StyleOption,
    TilingOption,
    WidthOption,
)
from studio.ui.composing import Plan, left_out, make_plan, methods_of, places_of
from studio.ui.judging import (
    BestOfOption,
    ClipOption,
    Eyes,
    ReferencesOption,
    known_pictures,
    reference_folders,
    scorers_of,
)
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from studio.models import BaseModel
    from studio.pipelines.best_of import Candidate
    from studio.pipelines.evaluation import Scorer


@dataclass(frozen=True)
class _BestOf:
    """How many candidates a picture is chosen from, and by what."""

    number: int
    clip: str | None
    folders: dict[str, Path]
    library: Sequence[Concept]

    @classmethod
    def planned(cls, number: int, clip: str | None, given: Sequence[str], plan: Plan, library: Library) -> "_BestOf":
        """What the command line says; raises UsageError where nothing could choose."""
        if number > 1 and not plan.concepts:
            raise UsageError("--best-of chooses by concepts, and the prompt names none.", "Leave it out.")
        if number > 1 and clip is None and plan.source.name != EMBEDDED:
            raise UsageError(
                f"Nothing is given that could choose among pictures of {plan.source.name}.",
                "Give a CLIP with --clip, as in --clip ViT-B-32/laion2b_s34b_b79k.",
            )
        folders = reference_folders([one for one, _ in plan.concepts], given)
        return cls(number, clip, folders, library.concepts())

    def scorers(self, plan: Plan, device: str | None, emit: Emit) -> "list[Scorer]":
        """None where nothing is chosen."""
        if self.number == 1:
            return []
        concepts = [one for one, _ in plan.concepts]
        classes = {one.name: one.class_word for one in (*self.library, *concepts)}
        known = known_pictures(concepts, self.library, self.folders, emit)
        return scorers_of(known, classes, plan.source, Eyes(self.clip), device)


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
        "offload": offload, "attention": attention,
    }  # fmt: skip
    plan = make_plan(state, options, concept or [], style or [], base, methods, places, out, told)
    chosen = _BestOf.planned(best_of, clip, references or [], plan, Library(state))
    _run(plan, chosen, device, as_json, compare=compare)


def _run(plan: Plan, best_of: _BestOf, device: str | None, as_json: bool, *, compare: bool) -> None:
    began, settings = time.monotonic(), plan.settings
    with progress() as emit:
        for notice in plan.notices:
            emit(Notice(notice))
        drawn = _draw(plan, best_of, device, emit)
    paths: dict[str, list[Path]] = {}
    for name, several in drawn.items():
        told = describe(settings, plan.source, plan.concepts, name, plan.layout, plan.styles)
        folder = plan.folder / name if compare else plan.folder
        paths[name] = save_pictures([one.picture for one in several], folder, told, [one.seed for one in several])
    description = describe(settings, plan.source, plan.concepts, ", ".join(drawn), plan.layout, plan.styles)
    sheet = None
    if compare:
        from studio.pipelines.contact_sheet import contact_sheet

        rows = {name: [one.picture for one in several] for name, several in drawn.items()}
        sheet = save_sheet(contact_sheet(rows, columns=settings.count), plan.folder, description)
    if as_json:
        made = [
            {"path": path, "seed": one.seed, "method": name} | ({"scores": one.scores} if one.scores else {})
            for name, several in paths.items()
            for path, one in zip(several, drawn[name], strict=True)
        ]
        first = next(iter(drawn.values()))[0].picture
        report = {"pictures": made, "sheet": sheet, "seconds": round(time.monotonic() - began, 2)}
        print_json(report | description | {"width": first.width, "height": first.height})
        return
    for path in [path for several in paths.values() for path in several]:
        typer.echo(path)
    if sheet is not None:
        typer.echo(sheet)


def _draw(plan: Plan, best_of: _BestOf, device: str | None, emit: Emit) -> "dict[str, list[Candidate]]":
    """Pictures by method; of several methods those are left out that cannot draw this."""
    emit(Phase("Loading the base model"))
    from studio.models import load_base

    model = load_base(plan.source, device, offload=plan.settings.offload)
    scorers = best_of.scorers(plan, device, emit)
    drawn: dict[str, list[Candidate]] = {}
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
            drawn[method.name] = _candidates(model, plan, method, best_of.number, scorers, once)
        except UsageError as error:
            if len(plan.methods) == 1:
                raise
            refused.append(error)
            emit(Notice(left_out(method, error)))
    if not drawn:
        raise refused[0]
    return drawn


def _candidates(
    model: "BaseModel", plan: Plan, method: Method, number: int, scorers: "Sequence[Scorer]", emit: Emit
) -> "list[Candidate]":
    """A picture for each that is asked for: the best of its candidates."""
    from studio.pipelines.best_of import Candidate, best_of
    from studio.pipelines.compose import compose as draw

    def pictures(settings: GenerateSettings) -> "list[Image]":
        return draw(model, settings, plan.concepts, method.make(), emit, plan.layout, plan.styles)

    if number == 1:
        made = pictures(plan.settings)
        return [Candidate(plan.settings.seed + n, one, {}) for n, one in enumerate(made)]
    case = Case(method.name, plan.settings, tuple(one for one, _ in plan.concepts), method, plan.layout)
    groups = best_of(number, case, model.sizes, pictures, scorers, emit)
    for n, group in enumerate(groups):
        emit(Notice(f"Picture {n + 1} is seed {group[0].seed} of {number} candidates{_told(group[0].scores)}."))
    return [group[0] for group in groups]


def _told(scores: dict[str, float]) -> str:
    from studio.pipelines.best_of import MERITS

    said = ", ".join(f"{name} {scores[name]:.2f}" for name in MERITS if name in scores)
    return f" ({said})" if said else ""
