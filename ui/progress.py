"""How a terminal shows the event stream: bars with loss and time left, or plain lines where nobody watches.

Everything goes to stderr: stdout belongs to the result. A `Failed` event only closes the bars; its words come with the
error that the command raises.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from studio.events import Done, Emit, Event, Failed, Loss, Notice, Phase, Preview, Step, Validation

PLAIN_LINE_SECONDS = 10.0
LOSS_MEMORY = 0.9


@contextmanager
def progress(console: Console | None = None) -> Iterator[Emit]:
    """Yield an `emit` that renders events on `console` (stderr by default) until the block ends."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[loss]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        listener = _Bars(bars)
        yield listener
        listener.close()


@dataclass
class _Pace:
    """What is known of the current phase: when it began, and the running mean of its losses."""

    name: str
    began: float
    mean_loss: float | None = None

    def note(self, loss: float) -> None:
        self.mean_loss = loss if self.mean_loss is None else LOSS_MEMORY * self.mean_loss + (1 - LOSS_MEMORY) * loss

    def loss_text(self) -> str:
        return "" if self.mean_loss is None else f"loss {self.mean_loss:.4f}"

    def left_text(self, step: Step) -> str:
        """The time left: as told, or from the pace so far."""
        seconds = step.seconds_left
        if seconds is None and step.step:
            seconds = (time.monotonic() - self.began) * (step.total - step.step) / step.step
        return "" if seconds is None else f"{duration(seconds)} left"


class _Bars:
    """One bar a phase."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.pace = _Pace("", time.monotonic())
        self.task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Phase(name, total):
                self.begin(name, total)
            case Step():
                self.advance(event)
            case Loss():
                self.pace.note(event.loss)
            case Failed():
                self.close()
            case Validation() | Preview() | Notice() | Done():
                self.bars.console.print(sentence(event), markup=False, highlight=False, soft_wrap=True)

    def begin(self, name: str, total: int | None) -> None:
        self.close()
        self.pace = _Pace(name, time.monotonic())
        self.task = self.bars.add_task(name, total=total, count="", loss="", left="")

    def advance(self, step: Step) -> None:
        if self.task is None:
            self.begin("Working", step.total)
        assert self.task is not None
        self.bars.update(
            self.task,
            completed=step.step,
            total=step.total,
            count=f"{step.step}/{step.total}",
            loss=self.pace.loss_text(),
            left=self.pace.left_text(step),
        )

    def close(self) -> None:
        """End the running bar; one without a known total becomes full, so that it stops moving."""
        if self.task is None:
            return
        task = next(task for task in self.bars.tasks if task.id == self.task)
        if task.total is None:
            self.bars.update(self.task, total=1, completed=1)
        self.bars.update(self.task, left=duration(time.monotonic() - self.pace.began))
        self.task = None


class _Lines:
    """One line when a phase begins, then one every few seconds and one at its end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.pace = _Pace("", time.monotonic())
        self.told = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case Phase(name, total):
                self.pace = _Pace(name, time.monotonic())
                self.told = time.monotonic()
                self.say(name if total is None else f"{name} ({total})")
            case Step():
                self.advance(event)
            case Loss():
                self.pace.note(event.loss)
            case Validation() | Preview() | Notice() | Done():
                self.say(sentence(event))
            case Failed():
                pass

    def advance(self, step: Step) -> None:
        now = time.monotonic()
        if step.step < step.total and now - self.told < PLAIN_LINE_SECONDS:
            return
        self.told = now
        parts = (f"{step.step}/{step.total}", self.pace.loss_text(), self.pace.left_text(step))
        self.say(f"{self.pace.name}: " + ", ".join(part for part in parts if part))

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def sentence(event: Validation | Preview | Notice | Done) -> str:
    """The event as one line of text."""
    match event:
        case Validation(step, loss, fidelity):
            pictures = "" if fidelity is None else "; pictures: concept {:.2f}, prompt {:.2f}".format(*fidelity)
            return f"Validation loss at step {step}: {loss:.4f}{pictures}"
        case Preview(step, paths, _):
            return f"Pictures at step {step}: {', '.join(str(path) for path in paths)}"
        case Notice(message):
            return f"Note: {message}"
        case Done(_, summary):
            return summary


def duration(seconds: float) -> str:
    """`seconds` as people say it: `42 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
