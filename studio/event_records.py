"""Events as JSON and back, for those who listen from another process."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from studio import events
from studio.events import Event

_KINDS: dict[str, type[Event]] = {
    one.__name__.lower(): one
    for one in (
        events.Phase, events.Step, events.Loss, events.Validation, events.Preview, events.Notice, events.Done,
        events.Failed,
    )
}  # fmt: skip


def record(event: Event) -> tuple[str, str]:
    """(kind, JSON) of `event`; the JSON names the kind too."""
    kind = type(event).__name__.lower()
    return kind, json.dumps({"kind": kind} | asdict(event), default=str, ensure_ascii=False)


def event_of(data: dict[str, Any]) -> Event:
    """The event that `record` wrote as `data`."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    kind = values.pop("kind")
    if "path" in values:
        values["path"] = Path(values["path"])
    if "paths" in values:
        values["paths"] = tuple(map(Path, values["paths"]))
    return _KINDS[kind](**values)
