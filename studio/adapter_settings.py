"""What stands beside an adapter's tensors: PEFT's configuration, with or without a component's prefix. No torch."""

import json
from collections.abc import Mapping
from math import inf
from typing import Any

from studio.errors import UsageError
from studio.untrusted import shown

METADATA_KEY = "lora_adapter_metadata"  # diffusers' own, a JSON object: ranks and alphas as PEFT keeps them
# Ways of PEFT to begin a LoRA that take its beginning out of the base's weights, which then are not the base's own.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Settings:
    """Ranks and alphas by layer; raises UsageError for an adapter that is no difference to the base as it is."""

    def __init__(self, name: str, metadata: Mapping[str, str]) -> None:
        try:
            content = json.loads(metadata.get(METADATA_KEY, "{}"))
        except (ValueError, RecursionError):
            content = {}
        self._known: dict[str, Any] = content if isinstance(content, dict) else {}
        for key, value in self._known.items():
            if key.endswith("init_lora_weights") and str(value).lower().startswith(_BASE_CHANGING):
                raise UsageError(
                    f"{name} began as {shown(str(value), 40)!r}, which changes the base's own weights, and it only fits"
                    " those.",
                    "Save it from PEFT again with path_initial_model_for_weight_conversion: as a usual LoRA.",
                )

    def alpha(self, layer: str) -> float | None:
        """The alpha of "component.path", None where nothing is said."""
        component, _, path = layer.partition(".")
        whole = (path, path.removeprefix("text_model."))  # a level that only some releases of transformers have
        patterns = self._get(component, "alpha_pattern")
        if isinstance(patterns, dict):
            for pattern, value in patterns.items():  # as literal names: they come from strangers
                plain = str(pattern).removeprefix("^").removesuffix("$")
                behind = not str(pattern).startswith("^") and path.endswith(f".{plain}")
                if (plain in whole or behind) and (number := number_of(value)) is not None:
                    return number
        for key in ("lora_alpha", "alpha"):
            if (number := number_of(self._get(component, key))) is not None:
                return number
        return None

    def says(self, layer: str, key: str) -> Any:
        """The setting `key` for the component of `layer`."""
        return self._get(layer.partition(".")[0], key)

    def _get(self, component: str, key: str) -> Any:
        return self._known.get(f"{component}.{key}", self._known.get(key))


def number_of(value: object) -> float | None:
    """A setting as a number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return inf
