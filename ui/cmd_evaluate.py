"""`studio evaluate`: concepts, steps of a training or methods, scored on pictures of the same prompts and seeds."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.bases import EMBEDDED, BaseSource
from studio.concepts import ADAPTER_FILE, Concept, placeholders
from studio.errors import UsageError
from studio.events import Emit, Notice, Phase
from studio.home import Home, write_atomic
from studio.library import Library
from studio.pipelines.evaluation_plan import (
    PROTOCOLS,
    SCENES,
    Case,
    alone,
    as_told,
    by_captions,
    groups_of,
    over_time,
    read_prompts,
    side_by_side,
)
from studio.pipelines.methods import DEFAULT_METHOD, Method, find_method
from studio.pipelines.protocols import composlora_sets, joined, of_category
from studio.regions import Layout, parse_box
from studio.ui.asking import BaseOption, DeviceOption, GuidanceOption, StepsOption, choose_base, make_settings
from studio.ui.benching import keep_json, prepare_out, print_table
from studio.ui.judging import (
    ClipOption,
    Eyes,
    ReferencesOption,
    known_pictures,
    pictures_of,
    reference_folders,
    scorers_of,
)
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress

if TYPE_CHECKING:
    from studio.images import Picture
    from studio.pipelines.evaluation import Found
    from studio.pipelines.settings import GenerateSettings

CAPTIONS, COMPOSLORA = "captions", "composlora"
STEPS = "steps"  # as a training leaves them in its concept's folder
_CABINET = "evaluations"  # in the cache

PromptOption = Annotated[
    list[str] | None, typer.Option(help="A prompt, <milo> standing for the concept milo. Can be repeated.")
]
PromptsOption = Annotated[Path | None, typer.Option(help="A text file with a prompt a line.")]
TogetherOption = Annotated[
    int | None, typer.Option(help="Draw all groups of so many of the concepts, side by side from left to right.")
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        help="What is drawn of each concept where no prompt is given: scenes (four; only on picturebook), dreambooth"
        " (its 25 prompts), or captions (those of its own pictures, each beside its picture, and how far others drift,"
        " as peft compares methods). Or composlora: all sets of two to five of the library's concepts that are tagged"
        " character, clothing, style, background or object. Default: scenes on picturebook, else dreambooth."
    ),
]
CheckpointsOption = Annotated[
    bool, typer.Option("--checkpoints", help="A row for each step of the concept's training that was kept.")
]
MethodsOption = Annotated[
    str | None, typer.Option(help=f"Ways to compose, as in auto,merge. Default: {DEFAULT_METHOD}.")
]
BoxesOption = Annotated[
    list[str] | None, typer.Option(help="Where a concept belongs: NAME=LEFT,TOP,RIGHT,BOTTOM. Can be repeated.")
]
DinoOption = Annotated[
    str | None, typer.Option(help="A DINO: FOLDER or hub id of transformers, timm:MODEL=FILE. Default: none.")
]
DetectorOption = Annotated[
    str | None,
    typer.Option(help="A detector that says whether things are in their places: FOLDER or hub id of transformers."),
]
FolderOption = Annotated[
    Path | None, typer.Option(help="Folder for report.html, report.json, pictures.csv. Default: outputs/evaluation.")
]


def evaluate(
    names: Annotated[list[str] | None, typer.Argument(help="Concepts by name. Default: those of the prompts.")] = None,
    prompt: PromptOption = None,
    prompts: PromptsOption = None,
    together: TogetherOption = None,
    protocol: ProtocolOption = None,
    checkpoints: CheckpointsOption = False,
    methods: MethodsOption = None,
    box: BoxesOption = None,
    references: ReferencesOption = None,
    clip: ClipOption = None,
    dino: DinoOption = None,
    detector: DetectorOption = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Pictures of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    base: BaseOption = None,
    device: DeviceOption = None,
    out: FolderOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score concepts, the steps of a training or ways to compose, on the same prompts and seeds.

    What was drawn and scored before is not made again: a call that was stopped goes on.
    """
    state = Home.resolve(home)
    library = Library(state)
    asked = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    concepts = _concepts(library, names or [], asked, protocol)
    source = choose_base(base, concepts)
    options = {"prompt": "", "steps": steps, "guidance": guidance, "seed": seed, "count": seeds}
    wanted = _Wanted(
        concepts, asked, together, protocol, checkpoints,
        [find_method(one) for one in (methods or DEFAULT_METHOD).split(",")], _layout(box or []),
        make_settings(options, source), reference_folders(concepts, references or []), Eyes(clip, dino, detector),
    )  # fmt: skip
    cases = _cases(wanted, source, state)
    folder = out or state.outputs / "evaluation"
    prepare_out(folder)
    with progress() as emit:
        found = _run(cases, wanted, library.concepts(), source, state, device, emit)
    _keep(found, folder)
    _show(found, folder, as_json)


@dataclass(frozen=True)
class _Wanted:
    """What the command line asks for."""

    concepts: Sequence[Concept]
    prompts: Sequence[str]
    together: int | None
    protocol: str | None
    checkpoints: bool
    methods: Sequence[Method]
    layout: Layout | None
    settings: "GenerateSettings"
    folders: dict[str, Path]  # of pictures, by name, where they are given
    eyes: Eyes


def _concepts(library: Library, names: Sequence[str], prompts: Sequence[str], protocol: str | None) -> list[Concept]:
    called = [name for prompt in prompts for name in placeholders(prompt)]
    if protocol == COMPOSLORA and not names:
        names = [name for several in of_category(library.concepts()).values() for name in several]
    found = [library.find(name) for name in dict.fromkeys([*names, *called])]
    if not found:
        there = ", ".join(one.name for one in library.concepts())
        raise UsageError("There is nothing to evaluate.", f"Name concepts; the library has: {there or 'none yet'}.")
    return found


def _layout(boxes: Sequence[str]) -> Layout | None:
    found = dict(map(parse_box, boxes))
    return Layout(found) if found else None


def _cases(wanted: _Wanted, source: BaseSource, state: Home) -> list[Case]:
    """Rows and prompts; raises UsageError for what does not go together."""
    concepts, settings = wanted.concepts, wanted.settings
    protocol = wanted.protocol or ("scenes" if source.name == EMBEDDED else "dreambooth")
    if protocol not in PROTOCOLS:
        raise UsageError(f"There is no protocol {protocol!r}.", f"Use one of: {', '.join(PROTOCOLS)}.")
    if wanted.checkpoints:
        if len(concepts) > 1 or wanted.prompts or wanted.together:
            raise UsageError("--checkpoints is about one concept, by a protocol.", "Name one; leave the rest out.")
        return over_time(concepts[0], _steps(concepts[0], state), protocol, source, settings)
    if wanted.prompts:
        return as_told(wanted.prompts, concepts, wanted.methods, wanted.layout, settings)
    if protocol == COMPOSLORA:
        sets = composlora_sets(of_category(concepts))
        if not sets:
            raise UsageError(
                "No set of ComposLoRA can be made of these concepts.",
                "Tag one as character and others: studio library tag NAME +character",
            )
        return as_told([joined(names) for names in sets], concepts, wanted.methods, None, settings)
    if wanted.together:
        scenes = SCENES if source.name == EMBEDDED else ("",)
        return side_by_side(groups_of(concepts, wanted.together), scenes, wanted.methods, settings)
    if protocol == CAPTIONS:
        return [case for one in concepts for case in by_captions(one, _pictures(one, wanted.folders), settings)]
    return alone(concepts, protocol, source, settings)


def _pictures(concept: Concept, folders: dict[str, Path]) -> "list[Picture]":
    from studio.images import find_pictures

    folder = pictures_of(concept, folders)
    if folder is None:
        raise UsageError(
            f"The pictures of {concept.name} are not at hand.", f"Give them: --references {concept.name}=FOLDER"
        )
    return find_pictures(folder)


def _steps(concept: Concept, state: Home) -> list[Concept]:
    """The concept as it was at each step that its training kept."""
    files = sorted((concept.folder / STEPS).glob("step-*.safetensors"))
    if not files:
        raise UsageError(
            f"The training of {concept.name!r} kept no steps.", "Those with validate_every in their recipe do."
        )
    found = []
    for file in files:
        folder = state.cache / _CABINET / "steps" / concept.name / f"step {int(file.stem.partition('-')[2])}"
        write_atomic(folder / ADAPTER_FILE, lambda to, file=file: shutil.copyfile(file, to))
        found.append(replace(concept, folder=folder, sha256=None))
    return found


def _run(
    cases: Sequence[Case],
    wanted: _Wanted,
    library: Sequence[Concept],
    source: BaseSource,
    state: Home,
    device: str | None,
    emit: Emit,
) -> "Found":
    emit(Phase("Load the base and what scores"))
    from studio.models import load_base
    from studio.pipelines.evaluation import Cabinet, evaluate
    from studio.pipelines.scorers import Watch

    known = known_pictures(wanted.concepts, library, wanted.folders, emit)
    classes = {one.name: one.class_word for one in (*library, *wanted.concepts)}
    scorers = scorers_of(known, classes, source, wanted.eyes, device)
    if source.name != EMBEDDED and wanted.eyes == Eyes():
        emit(Notice("No --clip, --dino or --detector is given, so nothing says what the pictures show."))
    return evaluate(load_base(source, device), cases, [*scorers, Watch()], Cabinet(state.cache / _CABINET), emit)


def _keep(found: "Found", folder: Path) -> None:
    from studio.pipelines.evaluation_table import as_csv, report_of
    from studio.ui.evaluate_page import write_page

    keep_json(folder, "report", report_of(found))
    text = as_csv(found)
    write_atomic(folder / "pictures.csv", lambda file: file.write_text(text, encoding="utf-8"))
    write_page(found, folder / "report.html")


def _told(mean: Mapping[str, float]) -> str:
    from studio.ui.evaluate_page import figure

    return f"{figure(mean['value'])} [{figure(mean['low'])}, {figure(mean['high'])}]"


def _show(found: "Found", folder: Path, as_json: bool) -> None:
    from studio.pipelines.evaluation_table import report_of, scores_of

    report = report_of(found)
    if as_json:
        print_json(report | {"report": folder / "report.html"})
        return
    rows = [("pictures", *(str(means["pictures"]) for means in report["rows"].values()))]
    for name in scores_of(found):
        rows.append((name, *(_told(means[name]) if name in means else "" for means in report["rows"].values())))
    print_table(("", *report["rows"]), rows)
    typer.echo(f"{len(found.pictures)} pictures, {found.drawn} of them drawn now: {folder / 'report.html'}")
