import dataclasses
from typing import get_args

import pytest

from studio.events import Event, Phase, silent


@pytest.mark.parametrize("kind", get_args(Event))
def test_events_are_frozen(kind: type):
    assert kind.__dataclass_params__.frozen


def test_events_compare_by_what_they_say():
    assert Phase("Training", 10) == Phase("Training", 10) != Phase("Training", 11)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Phase("Training").name = "Drawing"  # pyright: ignore[reportAttributeAccessIssue]


def test_silent_listens_to_nothing():
    assert silent(Phase("Training")) is None
