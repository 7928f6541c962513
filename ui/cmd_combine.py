"""`studio merge-adapters`, `resize` and `split`: new adapter files out of old ones."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.errors import UsageError
from studio.ui.adapter_sources import AdapterSource, find_adapter
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.untrusted import shown

if TYPE_CHECKING:
    from studio.adapter_algebra import Cut
    from studio.adapters import Adapter

METHODS = ("sum", "svd", "lego")
OutOption = Annotated[Path, typer.Option(help="The new .safetensors file.", show_default=False)]
HalfOption = Annotated[bool, typer.Option("--half", help="Write 16-bit numbers: half the size.")]


def merge_adapters(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="Files or concepts, each with its weight if not 1: a.safetensors=0.7 milo=0.5", show_default=False
        ),
    ],
    out: OutOption,
    method: Annotated[
        str,
        typer.Option(help="sum: exact, ranks add up. svd: the nearest of --rank. lego: --rank clusters of like units."),
    ] = "sum",
    rank: Annotated[int | None, typer.Option(help="Ranks a layer of the result, for svd and lego.")] = None,
    half: HalfOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make one adapter of several: their weighted sum, exactly or in few ranks, or rank-wise clusters (LoRA-LEGO)."""
    if method not in METHODS:
        raise UsageError(f"There is no method {method!r}.", f"Choose one of {', '.join(METHODS)}.")
    if (rank is None) != (method == "sum"):
        needed = "keeps all ranks and takes no --rank" if method == "sum" else "needs --rank"
        raise UsageError(f"The method {method} {needed}.", "Write --method svd --rank 16, or leave both out.")
    parts = [_weighted(text, home) for text in adapters]
    if len(parts) < 2:
        raise UsageError("One adapter alone cannot be merged.", "Give two or more files, or use: studio resize")
    _check_out(out, [source.path for source, _ in parts])
    from studio import adapter_algebra as algebra

    loaded = [(_load(source), weight) for source, weight in parts]
    cut = None
    if method == "svd":
        cut = algebra.add_and_cut(loaded, out.stem, rank or 0)
        merged = cut.adapter
    elif method == "lego":
        merged = algebra.add_clustered(loaded, out.stem, rank or 0)
    else:
        merged = algebra.add(loaded, out.stem)
    record = {"method": method, "merged": [{"file": source.path, "weight": weight} for source, weight in parts]}
    _report(
        record | _loss(cut) | _unread([one for one, _ in loaded]) | {"written": [_write(merged, out, half)]}, as_json
    )


def resize(
    file: Annotated[str, typer.Argument(help="An adapter file, or a concept's name.", show_default=False)],
    out: OutOption,
    rank: Annotated[int | None, typer.Option(help="The highest rank of a layer.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead: as few ranks a layer as keep this share of its squared norm.")
    ] = None,
    half: HalfOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an adapter as a LoRA of lower rank, the nearest there is, and tell what is lost."""
    if (rank is None) == (energy is None):
        raise UsageError("A rank or an energy is needed, and not both.", "Give --rank 16, or --energy 0.95.")
    source = find_adapter(file, home)
    _check_out(out, [source.path])
    from studio.adapter_algebra import resize as cut_down

    adapter = _load(source)
    cut = cut_down(adapter, rank=rank, energy=energy)
    record = {"file": source.path} | _loss(cut) | _unread([adapter]) | {"written": [_write(cut.adapter, out, half)]}
    _report(record, as_json)


def split(
    file: Annotated[
        str,
        typer.Argument(
            help="A B-LoRA or an SDXL LoRA of the whole UNet: a file, or a concept's name.", show_default=False
        ),
    ],
    out_content: Annotated[Path, typer.Option(help="The new file with the content half.", show_default=False)],
    out_style: Annotated[Path, typer.Option(help="The new file with the style half.", show_default=False)],
    half: HalfOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Split a B-LoRA into what carries content (in SDXL up_blocks.0.attentions.0) and what carries style (.1)."""
    source = find_adapter(file, home)
    _check_out(out_content, [source.path])
    _check_out(out_style, [source.path, out_content])
    from studio.blora import split as halves

    adapter = _load(source)
    content, style, dropped = halves(adapter)
    record: dict[str, Any] = {"file": source.path} | _unread([adapter])
    if dropped:
        record["dropped"] = f"{len(dropped)} layers are in neither half, e.g. {shown(dropped[0], 100)}"
    if adapter.embeddings:
        record["words"] = f"the words {shown(', '.join(adapter.embeddings), 100)} stay with the content"
    written = [_write(content, out_content, half), _write(style, out_style, half)]
    _report(record | {"written": written}, as_json)


def _weighted(text: str, home: Path | None) -> tuple[AdapterSource, float]:
    """An adapter and its weight; a path may hold "=" itself."""
    name, given, number = text.rpartition("=")
    if not given or Path(text).exists():
        return find_adapter(text, home), 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < abs(weight) <= 10:
        raise UsageError(f"{text}: {number!r} is no weight.", f"Write a number up to 10 that is not 0: {name}=0.7")
    return find_adapter(name, home), weight


def _check_out(out: Path, taken: Sequence[Path]) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"{out} is no name for an adapter.", "Give a name that ends in .safetensors.")
    if any(out.resolve() == path.resolve() for path in taken):
        raise UsageError(f"{out} is given twice.", "Give the new file a name of its own.")


def _load(source: AdapterSource) -> "Adapter":
    from studio.adapters import check_values

    adapter = source.load()
    check_values(adapter)
    return adapter


def _write(adapter: "Adapter", out: Path, half: bool) -> dict[str, Any]:
    """Write `adapter` as diffusers does, or as kohya does where it holds more than plain pairs."""
    from studio.adapter_writing import write_adapter
    from studio.factors import LowRank, tensors_of

    pairs = all(isinstance(factor, LowRank) and factor.mid is None for factor in adapter.factors.values())
    target = "diffusers" if pairs and not adapter.biases and not adapter.embeddings else "kohya"
    write_adapter(adapter, out, target, half=half)
    ranks = [factor.rank for factor in adapter.factors.values() if factor.rank is not None]
    return {
        "file": out,
        "format": target,
        "layers": len(adapter.layers),
        "parameters": sum(t.numel() for factor in adapter.factors.values() for t in tensors_of(factor)),
        "ranks": sorted(set(ranks)),
        "bytes": out.stat().st_size,
    }


def _loss(cut: "Cut | None") -> dict[str, Any]:
    if cut is None:
        return {}
    layer, error = cut.worst
    return {"error": cut.error, "worst": {"layer": shown(layer, 120), "error": error}}


def _unread(adapters: Sequence["Adapter"]) -> dict[str, str]:
    """What of the files is lost because nothing explains it."""
    keys = [key for adapter in adapters for key in adapter.unread]
    return {"unread": f"{len(keys)} keys are not understood and left out, e.g. {shown(keys[0], 100)}"} if keys else {}


def _report(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    if "error" in record:
        worst = record["worst"]
        typer.echo(f"lost: {record['error']:.2%} of the change, most in {worst['layer']} ({worst['error']:.2%})")
    for note in ("unread", "dropped", "words"):
        if note in record:
            typer.echo(f"note: {record[note]}")
    for one in record["written"]:
        ranks = one["ranks"]
        span = "" if not ranks else f", rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
        typer.echo(f"{one['file']}: {one['layers']} layers{span}, {one['bytes']:,} bytes, {one['format']} format")
