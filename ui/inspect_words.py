"""An inspection, and how it reads in words on a terminal and on a page. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studio.adapter_report import AdapterReport


@dataclass(frozen=True)
class Inspection:
    """A report with what was measured beside it, each by layer and by block; `sha256` where the file was read."""

    file: Path
    report: "AdapterReport"
    sha256: str | None
    norms: dict[str, float] | None = None
    block_norms: dict[str, float] | None = None
    base: str | None = None
    intruders: dict[str, int] | None = None
    block_intruders: dict[str, int] | None = None


def facts(found: Inspection) -> dict[str, str]:
    """What is known of a file as a whole, by name; without what the file does not tell."""
    from studio.adapter_family import NAMES

    report = found.report
    told = {
        "name": report.name,
        "format": report.format,
        "made for": NAMES.get(report.family or "", "unknown: the file does not tell"),
        "kinds": ", ".join(f"{kind} ({count})" for kind, count in report.kinds.items()),
        "B-LoRA": " and ".join(f"{half} half" for half in report.halves),
        "layers": f"{report.layers:,} with {report.parameters:,} parameters",
        "size": f"{report.bytes:,} bytes",
        "SHA-256": found.sha256 or "",
        "trigger words": ", ".join(report.triggers),
        "embeddings": ", ".join(report.words),
        "frequent tags": ", ".join(f"{tag} ({count})" for tag, count in report.tags),
    }
    return {name: text for name, text in told.items() if text} | report.training


def numbers(values: Sequence[float | None]) -> str:
    """`4, 8` or, of many, `1 ... 64 (12 values)`; a dash where the file states none."""
    texts = ["-" if value is None else f"{value:g}" for value in values]
    return ", ".join(texts) if len(texts) <= 4 else f"{texts[0]} ... {texts[-1]} ({len(texts)} values)"
