"""`studio library`: what has been trained, and taking it away again."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from studio.concepts import Concept
from studio.home import Home
from studio.library import Library
from studio.ui.options import HomeOption, JsonOption, print_json

app = typer.Typer(no_args_is_help=True, help="List, show and remove trained concepts.")
NameArgument = Annotated[str, typer.Argument(help="The concept's name.", show_default=False)]


@app.command("list")
def list_concepts(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the concepts of the library."""
    library = Library(Home.resolve(home))
    concepts, damaged = library.concepts(), library.damaged()
    if as_json:
        print_json({"library": library.root, "concepts": [_record(one) for one in concepts], "damaged": damaged})
        return
    if not concepts and not damaged:
        typer.echo(
            f"{library.root} holds no concept yet. Train one: studio train-concept FOLDER --name NAME --class CLASS"
        )
        return
    table = Table("name", "in a prompt", "stands for", "method", "base")
    for one in concepts:
        table.add_row(one.name, f"<{one.name}>", one.phrase, one.method, one.base)
    Console().print(table)
    for name, problem in damaged.items():
        typer.echo(f"{name} is damaged: {problem}", err=True)


@app.command("show")
def show(name: NameArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show one concept: its words, its base and its files."""
    concept = Library(Home.resolve(home)).find(name)
    files = sorted(path.relative_to(concept.folder).as_posix() for path in concept.folder.rglob("*") if path.is_file())
    record = _record(concept) | {"adapter_bytes": concept.adapter_file.stat().st_size, "files": files}
    if as_json:
        print_json(record)
        return
    record["files"] = ", ".join(files)
    for key, value in record.items():
        typer.echo(f"{key.replace('_', ' '):>14}  {value}")


@app.command("remove")
def remove(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a concept with all its files."""
    library = Library(Home.resolve(home))
    folder = library.folder(name)
    if not yes:
        typer.confirm(f"Delete {folder} with everything in it?", abort=True, err=True)
    library.remove(name)
    if as_json:
        print_json({"removed": name, "folder": folder})
    else:
        typer.echo(f"Removed {name}.")


def _record(concept: Concept) -> dict[str, Any]:
    return {
        "name": concept.name,
        "phrase": concept.phrase,
        "trigger": concept.trigger,
        "class_word": concept.class_word,
        "method": concept.method,
        "base": concept.base,
        "family": concept.family,
        "folder": concept.folder,
    }
