"""`studio library`: what has been trained or brought in, and taking it out or away again."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from studio.concepts import Concept
from studio.errors import UsageError
from studio.home import Home
from studio.library import Library
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.untrusted import shown

app = typer.Typer(no_args_is_help=True, help="List, show, tag, remove, restore, import and export concepts.")
NameArgument = Annotated[str, typer.Argument(help="The concept's name.", show_default=False)]


@app.command("list")
def list_concepts(
    tag: Annotated[str | None, typer.Option(help="Only those with this tag.", show_default=False)] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the concepts of the library."""
    library = Library(Home.resolve(home))
    everything, damaged = library.everything()
    concepts = [one for one in everything if tag is None or tag in one.tags]
    if as_json:
        print_json({"library": library.root, "concepts": [_record(one) for one in concepts], "damaged": damaged})
        return
    if everything and not concepts:
        known = sorted({one for concept in everything for one in concept.tags})
        typer.echo(f"No concept has the tag {tag!r}. Tags in use: {', '.join(known) or 'none'}.")
        return
    if not concepts and not damaged:
        typer.echo(
            f"{library.root} holds no concept yet. Train one: studio train-concept FOLDER --name NAME --class CLASS"
        )
        return
    table = Table("name", "in a prompt", "stands for", "method", "base", "tags")
    for one in concepts:
        cells = (one.name, f"<{one.name}>", one.phrase, one.method, one.base, ", ".join(one.tags))
        table.add_row(*(Text(shown(cell)) for cell in cells))
    Console().print(table)
    for name, problem in damaged.items():
        typer.echo(f"{name} is damaged: {shown(problem, limit=1000)}", err=True)


@app.command("show")
def show(name: NameArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show one concept: its words, its base, its tags, its hash and its files."""
    concept = Library(Home.resolve(home)).find(name)
    files = sorted(path.relative_to(concept.folder).as_posix() for path in concept.folder.rglob("*") if path.is_file())
    record = _record(concept) | {"adapter_bytes": concept.adapter_file.stat().st_size, "files": files}
    if as_json:
        print_json(record)
        return
    record |= {"files": ", ".join(files), "tags": ", ".join(concept.tags)}
    for key, value in record.items():
        if value not in (None, ""):
            typer.echo(f"{key.replace('_', ' '):>14}  {shown(str(value), limit=1000)}")


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A .safetensors file, or a folder of PEFT.", show_default=False)],
    name: Annotated[str, typer.Option(help="What to call the concept.", show_default=False)],
    class_word: Annotated[
        str | None, typer.Option("--class", help="What it is, e.g. cat. Default: as the studio noted in its own files.")
    ] = None,
    trigger: Annotated[str | None, typer.Option(help="The word that calls it. Default: as the file says.")] = None,
    base: Annotated[str | None, typer.Option(help="The base that it was made for. Default: as the file says.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Refuse the file if its SHA-256 is another.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read a .pt or .pth of plain tensors, such as ED-LoRA's.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an adapter from elsewhere a concept of the library."""
    from studio.adapters import unsaid_words
    from studio.importing import Arrival, import_adapter
    from studio.trigger_words import trigger_words

    arrival = Arrival(path, name, class_word, trigger, base, sha256, allow_pickle)
    concept, adapter = import_adapter(Library(Home.resolve(home)), arrival)
    unread = {"count": len(adapter.unread), "examples": [shown(key, 80) for key in adapter.unread[:3]]}
    words = trigger_words(adapter.metadata, adapter.embeddings)
    if as_json:
        layers = len(adapter.layers)
        print_json(_record(concept) | {"format": adapter.format, "layers": layers, "unread": unread, "words": words})
        return
    typer.echo(
        f"Imported {name}: {adapter.format}, {concept.method}, {len(adapter.layers)} layers, for {concept.base}."
    )
    typer.echo(f"In prompts <{name}> stands for {shown(concept.phrase)!r}.")
    if trigger is None and len(words) > 1:
        typer.echo(f"The file also names: {', '.join(words[1:])}. Choose another with --trigger.")
    if unsaid := unsaid_words(adapter, concept):
        typer.echo(
            f"warning: the file brings the words {', '.join(shown(word, 60) for word in unsaid[:3])}, of which"
            f" {shown(concept.phrase)!r} says none: they act only where a prompt does.",
            err=True,
        )
    if unread["count"]:
        typer.echo(
            f"warning: {unread['count']} entries of the file are not understood and have no effect,"
            f" e.g. {', '.join(unread['examples'])}.",
            err=True,
        )


@app.command("export")
def export(
    name: NameArgument,
    to: Annotated[Path, typer.Option(help="A folder, or a .safetensors file.", show_default=False)],
    kind: Annotated[
        str | None,
        typer.Option("--as", help="diffusers, kohya, peft or lycoris. Default: a copy of the file as it is."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a concept's adapter for others, with a model card."""
    from studio.exporting import export_concept

    written = export_concept(Library(Home.resolve(home)).find(name), to, kind)
    if as_json:
        print_json({"exported": name, "files": written})
        return
    for path in written:
        typer.echo(path)


@app.command("tag", context_settings={"ignore_unknown_options": True})  # "-pets" is no option
def tag(
    name: NameArgument,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[+TAG|-TAG]...", help="Tags to add and to take away.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a concept's tags, or show them."""
    add, take = [], []
    for change in changes or []:
        if change[:1] not in ("+", "-"):
            raise UsageError(f"{change!r} is neither +TAG nor -TAG.", f"Add it with +{change}, take it with -{change}.")
        (add if change[0] == "+" else take).append(change[1:])
    library = Library(Home.resolve(home))
    concept = library.tag(name, add, take) if changes else library.find(name)
    if as_json:
        print_json({"name": concept.name, "tags": list(concept.tags)})
    else:
        typer.echo(", ".join(concept.tags) or f"{name} has no tags.")


@app.command("remove")
def remove(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Delete it at once, instead of moving it to the trash.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a concept with all its files to the trash, from where it can be restored."""
    library = Library(Home.resolve(home))
    folder = library.folder(name)
    if not yes:
        asked = f"Delete {folder} with everything in it?" if now else f"Move {folder} to the trash?"
        typer.confirm(asked, abort=True, err=True)
    entry = None if now else library.trash(name).entry
    if now:
        library.remove(name)
    if as_json:
        print_json({"removed": name, "folder": folder, "trash": entry})
    else:
        typer.echo(f"Removed {name}." if now else f"Moved {name} to the trash. Back: studio library restore {name}")


@app.command("restore")
def restore(
    name: Annotated[str, typer.Argument(help="What the concept was called.", show_default=False)],
    new: Annotated[str | None, typer.Option("--as", help="What to call it now. Default: as before.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a concept back from the trash; of several of one name, the last that went there."""
    library = Library(Home.resolve(home))
    found = next((one for one in library.trashed() if one.name == name), None)
    if found is None:
        known = sorted({one.name for one in library.trashed()})
        raise UsageError(f"There is no {name!r} in the trash.", f"It holds: {', '.join(known) or 'nothing'}.")
    restored = library.restore(found.entry, new)
    if as_json:
        print_json({"restored": restored})
    else:
        typer.echo(f"Restored {restored}.")


@app.command("trash")
def trash(
    empty: Annotated[bool, typer.Option("--empty", help="Delete for good what is in it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what is in the trash, or empty it."""
    library = Library(Home.resolve(home))
    inside = library.trashed()
    if empty and inside:
        if not yes:
            typer.confirm(f"Delete for good what is in the trash ({len(inside)})?", abort=True, err=True)
        library.empty_trash()
    if as_json:
        print_json({"trash": [asdict(one) for one in inside], "emptied": empty})
        return
    for one in inside:
        when = datetime.fromtimestamp(one.when).astimezone()
        said = "deleted" if empty else f"{one.bytes:,} bytes, since {when:%Y-%m-%d %H:%M}"
        typer.echo(f"{shown(one.name)}: {said}")
    if not inside:
        typer.echo("The trash is empty.")


def _record(concept: Concept) -> dict[str, Any]:
    return {
        "name": concept.name,
        "phrase": concept.phrase,
        "trigger": concept.trigger,
        "class_word": concept.class_word,
        "method": concept.method,
        "base": concept.base,
        "family": concept.family,
        "source": concept.source,
        "sha256": concept.sha256,
        "tags": list(concept.tags),
        "folder": concept.folder,
    }
