"""Work that a terminal does itself, written down as a job: the pages show it, and can cancel it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from studio.errors import Cancelled, StudioError
from studio.events import Emit, Event, Notice
from studio.home import Home
from studio.job_records import Order
from studio.job_work import Reporter, leased, working
from studio.jobs import JobStore
from studio.process_identity import Identity


class Recorded:
    """An `emit` for whoever watches and for the job's row, where there is one; `result` is what the work made."""

    def __init__(self, shown: Emit, reporter: Reporter | None) -> None:
        self._shown, self._reporter = shown, reporter
        self.result: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Pass `event` on."""
        self._shown(event)
        if self._reporter is not None:
            self._reporter(event)


@contextmanager
def recorded(home: Home, order: Order, shown: Emit) -> Iterator[Recorded]:
    """Within, `order` is a running job of this process, on a device that it has for itself; events go to `shown` too.

    Where the home cannot be written, the work is done all the same, and a notice says so.
    """
    store = JobStore(home)
    try:
        job = store.begin_here(order, Identity.of())
    except StudioError as error:
        shown(Notice(f"This is not written down as a job. {error.problem}"))
        yield Recorded(shown, None)
        return
    with working(store, job) as reporter:
        both = Recorded(shown, reporter)
        if not store.start(job.id, Identity.of()):
            raise Cancelled("Cancelled before it began.")
        with leased(home, order.device, both):
            yield both
        reporter.result = both.result
