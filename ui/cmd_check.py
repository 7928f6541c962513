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
    from studio.bases import find_base
    from studio.images import dataset_notices, survey
    from studio.trainers.presets import read_facts

    side = resolution or read_facts(find_base(base)).native_size
    findings = survey(path, side)
    usable = [one.picture for one in findings if one.picture is not None]
    notices = dataset_notices(path, usable) if usable else []
    if as_json:
        rows = [
            {
                "file": one.path.name,
                "pixels": None if one.picture is None else [one.picture.width, one.picture.height],
                "caption": None if one.picture is None else one.picture.caption,
                "problem": one.problem,
                "notes": one.notes,
            }
            for one in findings
        ]
        print_json({"resolution": side, "usable": len(usable), "pictures": rows, "notices": notices})
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(width=WIDE, soft_wrap=True, highlight=False)
        table = Table("picture", "pixels", "caption", "", box=None)
        for one in findings:
            size = "" if one.picture is None else f"{one.picture.width} x {one.picture.height}"
            caption = "" if one.picture is None else one.picture.caption or ""
            said = Text(f"cannot be used: {one.problem}", "bold red") if one.problem else Text("; ".join(one.notes))
            table.add_row(Text(one.path.name), size, Text(caption), said)
        console.print(table)
        for notice in notices:
            console.print(Text(notice))
        console.print(f"{len(usable)} of {len(findings)} pictures can be used, as squares of {side} px.")
    if len(usable) < len(findings):
        raise typer.Exit(1)
