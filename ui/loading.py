"""The base and the adapters that drawing works with: loaded, or kept from the last time."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.bases import BaseSource
from studio.concepts import Concept

if TYPE_CHECKING:
    from studio.adapters import Adapter
    from studio.job_worker import Bench
    from studio.models import BaseModel


def load(source: BaseSource, device: str | None, offload: bool) -> "BaseModel":
    """`source` on `device`, loaded now."""
    from studio.models import load_base

    return load_base(source, device, offload=offload)


def read(concept: Concept) -> "Adapter":
    """The adapter of `concept`, read now."""
    from studio.adapters import load_concept

    return load_concept(concept)


class Warm:
    """Loads and reads as `load` and `read` do, but keeps the last base of a process and the adapters of its last job,
    for as long as their files stay what they are."""

    def __init__(self, bench: "Bench") -> None:
        self._kept = bench.kept
        self._before: dict[Any, Adapter] = self._kept.get("adapters", {})
        self._now: dict[Any, Adapter] = {}
        self._kept["adapters"] = self._now

    def __call__(self, source: BaseSource, device: str | None, offload: bool) -> "BaseModel":
        """The kept base where it is the same, else one that takes its place."""
        key = (source, device, offload, _state_of(source))
        if self._kept.get("base", (None,))[0] != key:
            self._kept.pop("base", None)  # its memory first
            self._kept["base"] = (key, load(source, device, offload))
        return self._kept["base"][1]

    def adapter(self, concept: Concept) -> "Adapter":
        """The kept adapter where its file is the same, else one that is read."""
        key = (concept, concept.file_state)
        if key not in self._now:
            self._now[key] = self._before[key] if key in self._before else read(concept)
        return self._now[key]


def _state_of(source: BaseSource) -> float:
    """When the newest of a local base's files was changed; of the hub's the name says enough."""
    place = Path(source.location)
    if not place.exists():
        return 0.0
    files = place.rglob("*") if place.is_dir() else [place]
    return max((one.stat().st_mtime for one in files if one.is_file()), default=0.0)
