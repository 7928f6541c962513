"""Ctrl-C as a wish: the step is finished and saved first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from studio.errors import StudioError


class Stopped(StudioError):
    """The user stopped a training, which can be resumed. Exit code 130, as shells have it for Ctrl-C."""

    exit_code = 130


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C and SIGTERM only make the yielded function return True; a second one ends the process at once.

    Outside the main thread signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for kind in kinds:
            signal.signal(kind, before[kind])

    for kind in kinds:
        signal.signal(kind, note)
    try:
        yield lambda: bool(asked)
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])
