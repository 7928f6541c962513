"""How often random tests are tried: a little in every run, the same each time; a lot, and anew, under `make soak`."""

import os

import pytest
from hypothesis import HealthCheck, settings

SOAK = os.environ.get("STUDIO_SOAK") == "1"
soaked = pytest.mark.skipif(not SOAK, reason="make soak, or STUDIO_SOAK=1")  # what the whole suite has no time for


def tries(usual: int, soak: int) -> settings:
    """A decorator for a property."""
    return settings(
        max_examples=soak if SOAK else usual,
        derandomize=not SOAK,
        database=None,
        deadline=None,  # machines are busy
        suppress_health_check=[HealthCheck.too_slow],
    )
