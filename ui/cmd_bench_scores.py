"""`studio bench metrics`, `best-of` and `report`: what scores are worth, what choosing by them is worth, and tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from studio.errors import UsageError
from studio.events import Phase
from studio.home import Home, write_atomic
from studio.pipelines.markdown import interval
from studio.ui.benching import (
    NamesOption,
    OutOption,
    PresetOption,
    keep_report,
    learn_samples,
    load_tools,
    prepare_out,
    sample_names,
    show,
)
from studio.ui.judging import ClipOption
from studio.ui.options import HomeOption, JsonOption
from studio.ui.progress import progress


def metrics(
    names: NamesOption = None,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes of each ordered pair of subjects.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="What the drawings are made from.")] = 0,
    clip: ClipOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which score to believe for what: each reads true drawings, and drawings spoilt in one way."""
    chosen = sample_names(names)
    _check_several(chosen)
    prepare_out(out)
    with progress() as emit:
        emit(Phase("Load the base and what scores"))
        from studio.bases import EMBEDDED, find_base
        from studio.encoders import embedded_clip, load_clip
        from studio.models import load_base
        from studio.pipelines.metric_bench import bench_metrics

        seen = load_clip(clip) if clip else embedded_clip()
        report, pictures = bench_metrics(load_base(find_base(EMBEDDED)), seen, chosen, scenes, seed, emit)
    keep_report(out, "metrics", report, pictures)
    apart, told = report["told apart"], report["correlation with the truth"]
    rows = [
        (score, *(f"{row[score]['value']:.2f}" for row in apart.values()), f"{value:.2f}")
        for score, value in told.items()
    ]
    show(report, ("told apart", *apart, "correlation"), rows, as_json)


def best_of(
    names: NamesOption = None,
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs of the concepts.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures of each pair.")] = 8,
    number: Annotated[int, typer.Option(min=2, help="Candidates for each picture.")] = 8,
    preset: PresetOption = "normal",
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """What it is worth to choose by judge A among candidates, read by judge B."""
    chosen = sample_names(names)
    _check_several(chosen)
    prepare_out(out)
    with progress() as emit:
        from studio.pipelines.best_of_bench import bench_best_of
        from studio.pipelines.compose_arms import Known
        from studio.pipelines.compose_bench import ComposeBench, groups_of

        learned = learn_samples(chosen, preset, Home.resolve(home), emit)
        known = {one.sample: Known(one.concept, one.subject) for one in learned}
        groups = [tuple(known[name] for name in group) for group in groups_of(chosen, 2)[:pairs]]
        told, pictures = bench_best_of(*load_tools(emit), groups, number, ComposeBench(seeds), emit)
    keep_report(out, "best-of", told, pictures)
    rows = [(name, *map(interval, one.values())) for name, one in (told["rows"] | {"gain": told["gain"]}).items()]
    show(told, (f"{len(told['groups'])} pairs", *told["gain"]), rows, as_json)


def _check_several(chosen: Sequence[str]) -> None:
    if len(chosen) < 2:
        raise UsageError(f"{chosen[0]} alone is no pair.", "Give two --names or more, as in milo,rex.")


def report(
    folder: Annotated[Path, typer.Argument(help="Where benchmarks wrote their reports with --out.")],
    fill: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Put the tables into this document, between <!-- NAME --> and <!-- /NAME -->. Repeatable.",
        ),
    ] = None,
) -> None:
    """The reports of a folder as Markdown tables."""
    from studio.pipelines.bench_documents import filled, made, read_reports

    found = read_reports(folder)
    if not fill:
        typer.echo("\n\n".join(f"## {name}\n\n{made(name, one)}" for name, one in found.items()))
        return
    texts = {document: filled(document.read_text(encoding="utf-8"), found) for document in fill}
    for document, text in texts.items():
        write_atomic(document, lambda file, text=text: file.write_text(text, encoding="utf-8"))
