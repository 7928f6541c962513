"""What stands beside an adapter's tensors: PEFT's configuration, with or without a component's prefix. No torch."""

import json
import re
from collections.abc import Mapping
from math import inf
from typing import Any

from studio.errors import UsageError
from studio.untrusted import shown

METADATA_KEY = "lora_adapter_metadata"  # diffusers' own, a JSON object: ranks and alphas as PEFT keeps them
# Ways of PEFT to begin a LoRA that take its beginning out of the base's weights, which then are not the base's own.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NAME = re.compile(r"\^?[\w.-]+\$?")  # a layer's, with marks of a whole path
_ANYWHERE = r".*\."  # as PEFT itself writes before a name: what any name means anyway
_Known = dict[tuple[str, bool], tuple[int, Any]]  # by name, and whether it is a whole path: its place in the order


class Settings:
    """Ranks and alphas by layer; raises UsageError for an adapter that is no difference to the base as it is."""

    def __init__(self, name: str, metadata: Mapping[str, str]) -> None:
        try:
            content = json.loads(metadata.get(METADATA_KEY, "{}"))
        except (ValueError, RecursionError):
            content = {}
        self._adapter = name
        self._content: dict[str, Any] = content if isinstance(content, dict) else {}
        self._patterns: dict[tuple[str, str], _Known] = {}
        for key, value in self._content.items():
            if key.endswith("init_lora_weights") and str(value).lower().startswith(_BASE_CHANGING):
                raise UsageError(
                    f"{name} was begun by PEFT as {shown(str(value), 40)!r}, which changes the base's own weights, and"
                    " fits only those.",
                    "Save it from PEFT again with path_initial_model_for_weight_conversion: as a usual LoRA.",
                )

    def alpha(self, layer: str) -> float | None:
        """The alpha of "component.path", None where nothing is said; raises UsageError for regular expressions."""
        return self._number(layer, "alpha_pattern", "lora_alpha", "alpha")

    def rank(self, layer: str) -> float | None:
        """The rank, in the same way."""
        return self._number(layer, "rank_pattern", "r")

    def says(self, layer: str, key: str) -> Any:
        """The setting `key` for the component of `layer`."""
        component = layer.partition(".")[0]
        return self._content.get(f"{component}.{key}", self._content.get(key))

    def _number(self, layer: str, patterns: str, *keys: str) -> float | None:
        component, _, path = layer.partition(".")
        if (component, patterns) not in self._patterns:
            self._patterns[component, patterns] = self._read(patterns, self.says(layer, patterns))
        known = self._patterns[component, patterns]
        names = path.split(".")
        endings = [".".join(names[n:]) for n in range(len(names))]
        whole = (path, path.removeprefix("text_model."))  # a level that only some releases of transformers have
        places = [*((one, True) for one in whole), *((one, False) for one in endings)]
        found = sorted(known[place] for place in places if place in known)[:1]  # the first one counts
        values = [*(value for _, value in found), *(self.says(layer, key) for key in keys)]
        return next((number for number in map(_as_number, values) if number is not None), None)

    def _read(self, setting: str, patterns: object) -> _Known:
        """Patterns as names, literally: they come from strangers, and expressions can take for ever to compare."""
        known: _Known = {}
        for n, (pattern, value) in enumerate(patterns.items() if isinstance(patterns, dict) else ()):
            name = pattern.removeprefix(_ANYWHERE).replace(r"\.", ".")
            if not _NAME.fullmatch(name):
                raise UsageError(
                    f"{self._adapter} has the regular expression {shown(pattern, 60)!r} in {setting}; the studio reads"
                    " names of layers there.",
                    "Write the names of the layers that it means in its place.",
                )
            known.setdefault((name.strip("^$"), name.startswith("^")), (n, value))
        return known


def _as_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return inf
