"""`studio inspect`: what an adapter file is, what it changes and how much, and what looks wrong with it."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.bar import Bar
from rich.console import Console
from rich.table import Column, Table

from studio.bases import BaseSource, find_base
from studio.errors import UsageError
from studio.ui.adapter_sources import AdapterSource, find_adapter
from studio.ui.inspect_words import Inspection, facts, numbers
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress

if TYPE_CHECKING:
    from studio.adapters import Adapter

CHART_WIDTH = 40


def inspect(
    file: Annotated[
        str,
        typer.Argument(help="A .safetensors file, a folder of PEFT, or a concept's name.", show_default=False),
    ],
    norms: Annotated[bool, typer.Option("--norms", help="Measure how strongly each block is changed.")] = False,
    base: Annotated[
        str | None, typer.Option(help="Also count the directions that are new to this base: minutes for SDXL.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report with its charts as one HTML file.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read a .pth of plain tensors too, from a maker you trust.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what an adapter file holds, and what is suspicious about it; with --json alone only its header is read."""
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {html} has no name of an HTML file.", "Give a name that ends in .html.")
    source = None if base is None else find_base(base)
    measured = norms or html is not None or source is not None
    found = _inspect(find_adapter(file, home), measured, source, allow_pickle, hashed=measured or not as_json)
    if html is not None:
        from studio.ui.inspect_page import write_page

        write_page(found, html)
    if as_json:
        print_json(_record(found))
        return
    _print(found)
    if html is not None:
        typer.echo(html)


def _inspect(
    wanted: AdapterSource, measured: bool, source: BaseSource | None, allow_pickle: bool, hashed: bool
) -> Inspection:
    from studio.adapter_report import report_on, sha256
    from studio.adapters import check_family

    adapter, file = wanted.load(values=measured, allow_pickle=allow_pickle), wanted.path
    if source is not None:
        check_family(adapter, source.family, source.name)
    found = Inspection(file, report_on(adapter, file), sha256(file) if hashed else None)
    return _measured(found, adapter, source) if measured else found


def _measured(found: Inspection, adapter: "Adapter", source: BaseSource | None) -> Inspection:
    from studio import adapter_norms as measures
    from studio.events import Phase
    from studio.untrusted import shown

    with progress() as emit:
        base = None
        if source is not None:
            from studio.models import load_base

            emit(Phase("Loading the base model"))
            base = load_base(source)
        norms = measures.layer_norms(adapter, base)
        suspicious = measures.suspicious_values(adapter, norms)
        intruders = None
        if base is not None:
            suspicious += measures.strangers(adapter, base)
            intruders = measures.intruder_counts(adapter, base, emit)
    return replace(
        found,
        report=replace(found.report, suspicious=(*found.report.suspicious, *suspicious)),
        norms={shown(layer, 120): norm for layer, norm in norms.items()},
        block_norms=measures.block_norms(norms),
        base=None if source is None else source.name,
        intruders=None if intruders is None else {shown(layer, 120): n for layer, n in intruders.items()},
        block_intruders=None if intruders is None else measures.block_sums(intruders),
    )


def _record(found: Inspection) -> dict[str, Any]:
    """For programs: what was not measured is left out, and numbers that are not finite are null."""
    record = {"file": found.file, "sha256": found.sha256} | asdict(found.report)
    record["tags"] = dict(found.report.tags)
    if found.norms is not None:
        record |= {"norms": _finite(found.norms), "block_norms": _finite(found.block_norms or {})}
    if found.intruders is not None:
        record |= {"base": found.base, "intruders": found.intruders, "block_intruders": found.block_intruders}
    return record


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def _print(found: Inspection) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    for name, text in facts(found).items():
        console.print(f"{name:>16}  {text}", soft_wrap=True)
    console.print(_blocks(found))
    if found.block_norms:
        console.print(_chart(found.block_norms))
    for said in found.report.suspicious:
        console.print(f"suspicious: {said}", soft_wrap=True)


def _blocks(found: Inspection) -> Table:
    table = Table(Column("block", no_wrap=True), "layers", "parameters", "rank", "alpha")
    if found.block_intruders is not None:
        table.add_column("intruders")
    for block in found.report.blocks:
        row = [block.name, str(block.layers), f"{block.parameters:,}", numbers(block.ranks), numbers(block.alphas)]
        if found.block_intruders is not None:
            row.append(str(found.block_intruders.get(block.name, "")))
        table.add_row(*row)
    return table


def _chart(norms: dict[str, float]) -> Table:
    """Bars from zero; a norm that is not finite has none."""
    chart = Table.grid(Column(no_wrap=True), Column(no_wrap=True, justify="right"), "", padding=(0, 1))
    top = max([norm for norm in norms.values() if math.isfinite(norm)], default=0.0)
    for block, norm in norms.items():
        bar = Bar(top or 1.0, 0, norm if math.isfinite(norm) else 0.0, width=CHART_WIDTH)
        chart.add_row(block, f"{norm:.3g}", bar)
    chart.title, chart.title_justify = "norm of the change by block", "left"
    return chart
