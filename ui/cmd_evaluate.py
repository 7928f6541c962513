"""`studio evaluate`: concepts, steps of a training or methods, scored on pictures of the same prompts and seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.home import Home
from studio.library import Library
from studio.pipelines.evaluation_plan import read_prompts
from studio.pipelines.methods import DEFAULT_METHOD
from studio.regions import parse_box
from studio.ui.asking import BaseOption, DeviceOption, GuidanceOption, StepsOption
from studio.ui.benching import prepare_out, print_table
from studio.ui.judging import ClipOption, Eyes, ReferencesOption, reference_folders
from studio.ui.loading import load
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress

if TYPE_CHECKING:
    from studio.pipelines.evaluation import Found

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
    from studio.ui.asks import EvaluateAsk, lasting
    from studio.ui.evaluating import asked_concepts, keep_evaluation, plan_evaluation
    from studio.ui.evaluating import evaluate as run_evaluation
    from studio.ui.recording import recorded

    state = Home.resolve(home)
    given = {
        "names": names or (), "prompts": (*(prompt or ()), *(read_prompts(prompts) if prompts else ())),
        "together": together, "protocol": protocol, "checkpoints": checkpoints, "seeds": seeds, "seed": seed,
        "methods": methods.split(",") if methods else (), "boxes": _boxes(box or []), "steps": steps,
        "guidance": guidance, "base": base, "clip": clip, "dino": dino, "detector": detector,
    }  # fmt: skip
    ask = EvaluateAsk.read(given)
    concepts = asked_concepts(Library(state), ask.names, ask.prompts, ask.protocol)
    folders = reference_folders(concepts, references or [])
    wanted = plan_evaluation(state, ask, folders, Eyes(clip, dino, detector))
    networks = {key: lasting(getattr(ask, key)) for key in ("clip", "dino", "detector")}
    places = {name: str(folder.absolute()) for name, folder in folders.items()}
    ask = ask.model_copy(update=networks | {"base": base and wanted.source.lasting, "references": places})
    folder = out or state.outputs / "evaluation"
    prepare_out(folder)
    with progress() as shown, recorded(state, ask.order(device), shown) as job:
        found = run_evaluation(wanted, state, load, device, job)
        job.result = keep_evaluation(found, folder) | {"report": folder / "report.html"}
    _show(found, folder, as_json)


def _boxes(given: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
    return {name: box.sides for name, box in map(parse_box, given)}


def _told(mean: Mapping[str, Any]) -> str:
    from studio.ui.evaluate_page import figure

    if mean["low"] is None:
        return figure(mean["value"])
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
