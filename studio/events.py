"""What a long action tells the world while it runs: a stream of small frozen facts.

Every long action takes `emit: Emit` and calls it; terminals, jobs and pages only listen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Phase:
    """A named part of the work begins; `total` is its number of steps where it is known."""

    name: str
    total: int | None = None


@dataclass(frozen=True)
class Step:
    """Step `step` of `total` of the current phase is done; `seconds_left` is an estimate."""

    step: int
    total: int
    seconds_left: float | None = None


@dataclass(frozen=True)
class Loss:
    """The training loss and learning rate of one optimiser step."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Validation:
    """The loss at fixed noise after `step` steps; step 0 is before the first. `fidelity`, from 0 to 1, is what a scorer
    says of pictures drawn then: how much they are the concept, and how much they show what their prompts say."""

    step: int
    loss: float
    fidelity: tuple[float, float] | None = None


@dataclass(frozen=True)
class Preview:
    """Pictures made along the way, with the prompts that asked for them."""

    step: int
    paths: tuple[Path, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Notice:
    """Something the user should know that does not stop the work."""

    message: str


@dataclass(frozen=True)
class Done:
    """The action ended well; `path` is what it made."""

    path: Path
    summary: str


@dataclass(frozen=True)
class Failed:
    """The action ended without its result: why, and what to do next."""

    problem: str
    remedy: str


Event = Phase | Step | Loss | Validation | Preview | Notice | Done | Failed
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """Listen to nothing."""
