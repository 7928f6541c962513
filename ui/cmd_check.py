"""`studio check`: what a training would find in a folder of pictures, before there is one."""

from pathlib import Path
from typing import Annotated

import typer

from studio.bases import EMBEDDED
from studio.ui.benching import WIDE
from studio.ui.options import JsonOption, print_json


def check(
    path: Annotated[Path, typer.Argument(help="The folder with the pictures, or one picture.", show_default=False)],
    resolution: Annotated[int | None, typer.Option(min=16, help="Side of the training squares in pixels.")] = None,
    base: Annotated[str, typer.Option(help="The base, which says the side where --resolution does not.")] = EMBEDDED,
    as_json: JsonOption = False,
) -> None:
    """Show each picture with its caption, size and problems. Exit code 1 where one cannot be used."""
    from studio.bases import find_base, source_sizes
    from studio.buckets import training_sizes
    from studio.images import dataset_notices, survey
    from studio.trainers.presets import read_facts

    source = find_base(base)
    facts = read_facts(source)
    side, buckets = resolution or facts.native_size, not facts.own
    findings = survey(path, training_sizes(source_sizes(source), side, buckets))
    usable = [one.picture for one in findings if one.picture is not None]
    notices = dataset_notices(path, usable) if usable else []
    if as_json:
        rows = [
            {
                "file": one.name,
                "pixels": None if one.picture is None else [one.picture.width, one.picture.height],
                "trained_at": one.size,
                "repeats": None if one.picture is None else one.picture.repeats,
                "caption": None if one.picture is None else one.picture.caption,
                "problem": one.problem,
                "notes": one.notes,
            }
            for one in findings
        ]
        print_json(
            {"resolution": side, "buckets": buckets, "usable": len(usable), "pictures": rows, "notices": notices}
        )
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(width=WIDE, soft_wrap=True, highlight=False)
        table = Table("picture", "pixels", "trained at", "caption", "", box=None)
        for one in findings:
            size = "" if one.picture is None else f"{one.picture.width} x {one.picture.height}"
            cut = "" if one.size is None else f"{one.size[0]} x {one.size[1]}"
            caption = "" if one.picture is None else one.picture.caption or ""
            said = Text(f"cannot be used: {one.problem}", "bold red") if one.problem else Text("; ".join(one.notes))
            table.add_row(Text(one.name), size, cut, Text(caption), said)
        console.print(table)
        for notice in notices:
            console.print(Text(notice))
        shapes = f"in shapes of about {side} x {side}" if buckets else f"as squares of {side}"
        console.print(f"{len(usable)} of {len(findings)} pictures can be used, {shapes} px.")
    if len(usable) < len(findings):
        raise typer.Exit(1)
