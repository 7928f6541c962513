"""The tables of a folder of benchmarks, and into documents. Torch-free.

In a document a table stands between `<!-- NAME -->` and `<!-- /NAME -->`; in the project's own, whoever changes a
figure by hand fails a test.
"""

import json
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.pipelines.bench_tables import TABLES

_COMMANDS = {
    "ablation": "studio bench compose --ablation",
    "training-step": "studio bench train",
    "krona": "studio bench concepts --config",
    "krona-rates": "studio bench concepts --config",
    "memory": "make memory",
    "ahead": "python -m studio.kernels.ahead",
}


def read_reports(folder: Path) -> dict[str, Any]:
    """The reports of `folder` that have a table, by name; raises StudioError where there are none, or none that can be
    read."""
    found: dict[str, Any] = {}
    for name in TABLES:
        file = folder / f"{name}.json"
        if file.is_file():
            try:
                found[name] = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise StudioError(f"{file} is no JSON: {error}.", "Measure it again: studio bench --help") from error
    if not found:
        names = ", ".join(f"{name}.json" for name in TABLES)
        raise StudioError(f"There is no report in {folder}.", f"Benchmarks write there with --out: {names}.")
    return found


def made(name: str, report: Any) -> str:
    """The table of a report; raises StudioError where it lacks what the table shows."""
    try:
        return TABLES[name](report)
    except (LookupError, TypeError, AttributeError) as error:
        raise StudioError(
            f"{name}.json lacks {error}, which its table shows.", f"Measure it again: {command_of(name)}"
        ) from error


def command_of(name: str) -> str:
    """What measures a report."""
    kind, _, shape = name.partition("-")
    if kind in ("step", "compiled"):
        return f"studio bench step --shape {shape}" + " --compiled" * (kind == "compiled")
    return _COMMANDS.get(name, f"studio bench {name}")


def filled(text: str, reports: dict[str, Any]) -> str:
    """`text` with every marked table made anew; raises StudioError where a table's report is not there, or marks are
    not those of a table."""
    marks = re.findall(r"<!-- (/?[\w-]+) -->", text)
    for first, last in zip_longest(marks[::2], marks[1::2]):
        if first not in TABLES:
            raise StudioError(f"<!-- {first} --> begins no table.", f"There are: {', '.join(TABLES)}.")
        if last != f"/{first}":
            raise StudioError(f"The table {first} has no end.", f"Write <!-- /{first} --> after it.")
        if first not in reports:
            raise StudioError(f"A table wants {first}.json.", "Give the folder that has it.")
        whole = f"<!-- {first} -->\n{made(first, reports[first])}\n<!-- /{first} -->"
        text = re.sub(f"<!-- {first} -->.*?<!-- /{first} -->", lambda _, whole=whole: whole, text, flags=re.DOTALL)
    return text
