"""Markdown of measured figures."""

from collections.abc import Mapping
from typing import Any


def interval(found: Mapping[str, Any]) -> str:
    """A share or mean with its interval, where it has one."""
    if found["low"] is None:
        return f"{found['value']:.2f}"
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ("---",) * len(heads), *rows])
