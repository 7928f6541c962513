"""What the benchmarks have in common: who draws and judges, which samples, and where the figures go."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.errors import UsageError
from studio.events import Phase
from studio.home import Home, ensure_writable, write_atomic
from studio.ui.options import print_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from studio.concepts import Concept
    from studio.events import Emit
    from studio.judge import Judge
    from studio.models import BaseModel
    from studio.picturebook import Scene
    from studio.trainers.sample_concepts import Learned

NamesOption = Annotated[str | None, typer.Option(help="Sample concepts, as in milo,rex.  [all]")]
PresetOption = Annotated[str, typer.Option(help="How the samples are trained: quick, normal or best.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Also write the report and sheets of its pictures into this folder.")
]
Rows = Sequence[tuple[str, ...]]
WIDE = 240  # columns: a table is not folded, whoever reads it


def load_tools(emit: "Emit") -> "tuple[BaseModel, Judge]":
    """The embedded base and judge B; raises StudioError where either is missing."""
    emit(Phase("Load the base and judge B"))
    from studio.bases import EMBEDDED, find_base
    from studio.judge import Judge
    from studio.models import load_base

    source = find_base(EMBEDDED)
    judge = Judge.load("B")
    return load_base(source), judge


def learn_samples(
    names: Sequence[str], preset: str, home: Home, emit: "Emit", config: Path | None = None
) -> "list[Learned]":
    """The sample concepts, trained where the library does not have them, with the settings of the file `config`."""
    emit(Phase("Start"))
    from studio.judge import Judge
    from studio.trainers.sample_concepts import learn_sample

    Judge.load("B")  # before the trainings, lest they be for nothing
    return [learn_sample(name, preset, home, emit, config=config) for name in names]


def learn_styles(home: Home, emit: "Emit") -> "tuple[list[tuple[Concept, Scene]], int]":
    """A B-LoRA of one true drawing in each style, trained into `home`, and the steps that each took."""
    from studio.bases import EMBEDDED
    from studio.picturebook_draw import render
    from studio.pipelines.style_bench import SHOWN
    from studio.trainers.dreambooth import train_concept
    from studio.trainers.planning import plan_recipe

    learned, steps = [], 0
    for scene in SHOWN:
        picture = home.root / f"{scene.style}.png"
        render(scene).save(picture)
        given = {"pictures": picture, "name": scene.style, "class_word": scene.subjects[0].kind, "base": EMBEDDED}
        recipe = plan_recipe(given | {"method": "b-lora", "sample_every": 0}, None, home)
        emit(Phase(f"One picture in {scene.style} style"))
        learned.append((train_concept(recipe, home, emit), scene))
        steps = recipe.steps
    return learned, steps


def sample_names(names: str | None) -> list[str]:
    """Those of a list with commas, all of them for None; raises UsageError for others."""
    from studio.picturebook import SAMPLE_SUBJECTS

    chosen = list(dict.fromkeys(names.split(","))) if names else list(SAMPLE_SUBJECTS)
    for name in chosen:
        if name not in SAMPLE_SUBJECTS:
            raise UsageError(f"There is no sample concept {name!r}.", f"There are: {', '.join(SAMPLE_SUBJECTS)}.")
    return chosen


def flat(report: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Every value, and every share with its interval, under the names that lead to it."""
    found: dict[str, Any] = {}
    for name, value in report.items():
        deeper = isinstance(value, dict) and "low" not in value
        found |= flat(value, f"{before}{name}: ") if deeper else {before + name: value}
    return found


def prepare_out(out: Path | None) -> None:
    """Refuse a place that cannot be written to before anything is drawn."""
    if out is not None and out.is_file():
        raise UsageError(f"--out {out} is a file.", "Give a folder.")
    if out is not None:
        ensure_writable(out)


def show(report: Mapping[str, Any], heads: Sequence[str], rows: Rows, as_json: bool) -> None:
    """The report for programs, or a table for people."""
    if as_json:
        print_json(report)
    else:
        print_table(heads, rows)


def print_table(heads: Sequence[str], rows: Rows) -> None:
    """On stdout, however wide."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, box=None, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(width=WIDE, soft_wrap=True, markup=False, highlight=False).print(table)


def keep_report(out: Path | None, name: str, report: Mapping[str, Any], pictures: "Mapping[str, list[Image]]") -> None:
    """The report and a sheet of the pictures, where a folder is given."""
    if out is None:
        return
    from studio.pipelines.contact_sheet import contact_sheet

    keep_json(out, name, report)
    write_atomic(out / f"{name}.png", lambda file: contact_sheet(pictures).save(file, "PNG"))


def keep_json(out: Path, name: str, report: Mapping[str, Any]) -> None:
    """The report alone."""
    text = json.dumps(report, indent=1) + "\n"
    write_atomic(out / f"{name}.json", lambda file: file.write_text(text, encoding="utf-8"))
