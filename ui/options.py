"""The options that several commands share, and how a command reports to a machine."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="The studio's state folder; otherwise $STUDIO_HOME, or the platform's user-data folder."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")]


def print_json(report: object) -> None:
    """Print `report` on stdout as indented JSON; paths become strings."""
    everything = "utf" in str(sys.stdout.encoding).lower()
    typer.echo(json.dumps(report, indent=2, ensure_ascii=not everything, default=str))
