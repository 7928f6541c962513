"""`studio demo`: the whole way once, on sample concepts, ending in a report to look at."""

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.errors import UsageError
from studio.events import Done, Phase
from studio.home import Home, ensure_writable
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import duration, progress

if TYPE_CHECKING:
    from studio.ui.story import Measure, Story


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report.  [a new one in the state folder]", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Learn less and draw one picture a scene.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Learn the two anew, even if the library has them.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn two sample concepts, draw them alone and together, score the pictures, and write a report.

    What is learned stays in the library; a second run reuses it.
    """
    state = Home.resolve(home)
    folder = _folder(state, out)
    began = time.monotonic()
    with progress() as emit:
        emit(Phase("Start"))
        from studio.ui.demo import DemoPlan, run_demo
        from studio.ui.report import write_report

        plan = DemoPlan(preset="quick", count=1, fresh=fresh) if quick else DemoPlan(fresh=fresh)
        story = run_demo(plan, state, home, emit)
        path = write_report(story, folder)
        emit(Done(path, f"Done in {duration(time.monotonic() - began)}."))
    if as_json:
        print_json({"report": path} | _summary(story))
    else:
        typer.echo(f"The report is here, open it in a browser:\n{path}\n{path.as_uri()}")


def _folder(home: Home, out: Path | None) -> Path:
    """Where the report goes; proven to be writable before anything is learned."""
    if out is not None and out.is_file():
        raise UsageError(f"--out {out} is a file.", "Give a folder.")
    folder = out.absolute() if out else home.outputs / f"{datetime.now().astimezone():%Y-%m-%d-%H%M%S}-demo"
    ensure_writable(folder if out else home.outputs)
    return folder


def _summary(story: "Story") -> dict[str, Any]:
    return {
        "concepts": {concept.name: _shares(concept.measures) for concept in story.concepts},
        "both": _shares(story.pair_measures),
        "candidates": story.candidates,
        "pictures": story.pictures,
        "seconds": {part: round(seconds, 2) for part, seconds in story.times},
        "settings": story.settings,
        "machine": story.machine,
    }


def _shares(measures: "tuple[Measure, ...]") -> dict[str, dict[str, dict[str, float]]]:
    return {m.question: {kind: share.rounded() for kind, share in m.shares.items()} for m in measures}
