"""Time and memory that an action takes, and a wire that trips when anything is unpickled."""

import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@contextmanager
def watched(*, seconds: float, megabytes: float) -> Iterator[None]:
    """Fail where the block takes longer, or its peak memory is higher above the start (known on Linux only)."""
    clear = Path("/proc/self/clear_refs")
    counted = clear.exists()
    if counted:
        clear.write_text("5")  # the peak starts anew
    before, began = _status("VmRSS") if counted else 0, time.monotonic()
    yield
    took = time.monotonic() - began
    grown = (_status("VmHWM") - before) / 1000 if counted else 0
    assert took < seconds, f"{took:.2f} s"
    assert grown < megabytes, f"{grown:.0f} MB"


@contextmanager
def nothing_unpickled() -> Iterator[None]:
    """Fail where the block unpickles anything, also safely."""

    def trip(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
            patch.setattr(owner, name, trip)
        yield
