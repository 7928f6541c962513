"""The tables of a folder of benchmarks, and into documents. Torch-free.

In a document a table stands between `<!-- NAME -->` and `<!-- /NAME -->`; in the project's own, whoever changes a
figure by hand fails a test.
"""

import json
import re
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.pipelines.bench_tables import TABLES


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
            f"{name}.json lacks {error}, which its table shows.", f"Measure it again: studio bench {name}"
        ) from error


def filled(text: str, reports: dict[str, Any]) -> str:
    """`text` with every marked table made anew; raises StudioError where a table's report is not there."""
    for name in TABLES:
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        if marks[0] in text:
            if name not in reports:
                raise StudioError(f"A table wants {name}.json.", "Give the folder that has it.")
            whole = f"{marks[0]}\n{made(name, reports[name])}\n{marks[1]}"
            text = re.sub(f"{marks[0]}.*?{marks[1]}", lambda _, whole=whole: whole, text, flags=re.DOTALL)
    return text
