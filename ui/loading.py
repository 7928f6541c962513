"""The base and the adapters that drawing works with: loaded, or kept from the last time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.bases import BaseSource
from studio.concepts import Concept

if TYPE_CHECKING:
    from studio.bank import AdapterBank
    from studio.job_worker import Bench
    from studio.models import BaseModel


def load(source: BaseSource, device: str | None, offload: bool) -> "BaseModel":
    """`source` on `device`, loaded now."""
    from studio.models import load_base

    return load_base(source, device, offload=offload)


def bank_of(base: "BaseModel", concepts: Sequence[Concept]) -> "AdapterBank":
    """The adapters of `concepts`, read now."""
    from studio.bank import AdapterBank

    return AdapterBank.of(base, concepts)


class Warm:
    """Loads as `load` and `bank_of` do, but keeps the last base of a process, and where it is to `keep_bank` the
    adapters of the job, stacked as they were, for as long as their files stay what they are."""

    def __init__(self, bench: "Bench", *, keep_bank: bool = False) -> None:
        self._kept = bench.kept
        self._now: dict[Any, AdapterBank] = {}
        before = self._kept.pop("banks", {})
        self._before: dict[Any, AdapterBank] = before if keep_bank else {}
        if keep_bank:
            self._kept["banks"] = self._now

    def __call__(self, source: BaseSource, device: str | None, offload: bool) -> "BaseModel":
        """The kept base where it is the same, else one that takes its place."""
        key = (source, device, offload, _state_of(source))
        if self._kept.get("base", (None,))[0] != key:
            self._before.clear()  # their memory first
            self._kept.pop("base", None)
            self._kept["base"] = (key, load(source, device, offload))
        return self._kept["base"][1]

    def bank_of(self, base: "BaseModel", concepts: Sequence[Concept]) -> "AdapterBank":
        """The kept adapters where they and their files are the same, else those that take their place."""
        key = tuple((one, one.file_state) for one in concepts)
        if key in self._before:
            self._now[key] = self._before.pop(key)
        if key not in self._now or self._now[key].base is not base:
            self._before.clear()
            self._now[key] = bank_of(base, concepts)
        return self._now[key]


def _state_of(source: BaseSource) -> float:
    """When the newest of a local base's files was changed; of the hub's the name says enough."""
    place = Path(source.location)
    if not place.exists():
        return 0.0
    files = place.rglob("*") if place.is_dir() else [place]
    return max((one.stat().st_mtime for one in files if one.is_file()), default=0.0)
