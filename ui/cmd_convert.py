"""`studio convert`: an adapter in the format that another tool reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.errors import UsageError
from studio.ui.adapter_sources import find_adapter
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.untrusted import shown

if TYPE_CHECKING:
    from studio.adapter_writing import Written
    from studio.adapters import Adapter

_TARGETS = ("peft", "diffusers", "kohya", "lycoris")


def convert(
    file: Annotated[str, typer.Argument(help="The adapter: a .safetensors file, a PEFT folder or a concept's name.")],
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(_TARGETS)}.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write, for peft a folder. Default: beside FILE, of a concept here.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Round the weights to float16: half the size.")] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Let an SVD of this rank stand for what the format cannot hold exactly.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read a .pth, too: tensors only, nothing in it is run.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an adapter anew as PEFT, diffusers, kohya or LyCORIS file, and read it back before it counts."""
    if to not in _TARGETS:
        raise UsageError(f"--to {to} is no format of adapters.", f"Choose one of {', '.join(_TARGETS)}.")
    source = find_adapter(file, home)
    target = out or source.new_file(f".{to}" if to == "peft" else f".{to}.safetensors")
    _check_target(source.path, target, to == "peft", overwrite)
    from studio.adapter_writing import write_adapter
    from studio.adapters import check_values

    adapter = source.load(allow_pickle=allow_pickle)
    check_values(adapter)
    written = write_adapter(adapter, target, to, half=half, rank=rank)
    if as_json:
        print_json(_record(adapter, written, to))
        return
    _tell(adapter, written, to)


def _check_target(file: Path, target: Path, folder: bool, overwrite: bool) -> None:
    if target.resolve() == file.resolve():
        raise UsageError(f"{target} is the adapter itself.", "Name another place with --out.")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} is already there.", "Name another place with --out, or add --overwrite.")
    if target.exists() and target.is_dir() != folder:
        what = "a file, and a PEFT adapter is a folder" if folder else "a folder, and this format is one file"
        raise UsageError(f"{target} is {what}.", "Name another place with --out.")
    if folder and target.is_dir() and any(target.iterdir()) and not any(target.rglob("adapter_config.json")):
        raise UsageError(f"{target} holds other things than a PEFT adapter.", "Name another place with --out.")


def _record(adapter: "Adapter", written: "Written", to: str) -> dict[str, object]:
    return {
        "written": written.path,
        "to": to,
        "from": adapter.format,
        "layers": written.layers,
        "words": list(adapter.embeddings),
        "max_relative_error": written.error,
        "approximated": written.approximated,
        "left_out": list(adapter.unread),
    }


def _tell(adapter: "Adapter", written: "Written", to: str) -> None:
    words = f" and {len(adapter.embeddings)} words" if adapter.embeddings else ""
    typer.echo(written.path)
    typer.echo(
        f"{written.layers} layers{words}, from {adapter.format} to {to}; read back, the largest relative error of a"
        f" layer is {written.error:.1e}."
    )
    if written.approximated:
        typer.echo(f"{len(written.approximated)} layers are approximations by an SVD.")
    if adapter.unread:
        examples = ", ".join(shown(key, 80) for key in adapter.unread[:3])
        typer.echo(
            f"Left out: {len(adapter.unread)} tensors that no known convention explains, e.g. {examples}.", err=True
        )
