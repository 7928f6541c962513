"""What a demo has to tell, as plain data: its report is drawn from this and from nothing else."""

from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from studio.stats import Share

TRUE = "true drawings"  # the kind of picture that no model draws


@dataclass(frozen=True)
class Mark:
    """One thing that the judge looked for in a picture, and whether it is so."""

    label: str
    good: bool


@dataclass(frozen=True)
class Shot:
    """A picture with all that made it: `prompt` as the base read it, and what the judge says of it."""

    picture: Image
    prompt: str
    seed: int
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class SceneRow:
    """One prompt, drawn in two ways with the same seeds; `command` draws the second again."""

    prompt: str
    command: str
    before: tuple[Shot, ...]
    after: tuple[Shot, ...]


@dataclass(frozen=True)
class Measure:
    """One question of the judge: the share of yes for each kind of picture, by the kind's name."""

    question: str
    shares: dict[str, Share]


@dataclass(frozen=True)
class Growth:
    """What the prompts gave at one step of the training."""

    step: int
    shots: tuple[Shot, ...]


@dataclass(frozen=True)
class ConceptStory:
    """One concept, from its training pictures to new scenes. `losses` are (step, loss)."""

    name: str
    phrase: str
    class_word: str
    photos: tuple[Image, ...]
    steps: int
    seconds: float | None
    reused: bool
    losses: tuple[tuple[int, float], ...]
    growth: tuple[Growth, ...]
    scenes: tuple[SceneRow, ...]
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Command:
    """A line for the terminal, and what it does."""

    line: str
    purpose: str


@dataclass(frozen=True)
class Story:
    """The whole demo. `times` are (part, seconds); `candidates` is how many subjects identity is asked among."""

    concepts: tuple[ConceptStory, ...]
    pair_scenes: tuple[SceneRow, ...]
    pair_measures: tuple[Measure, ...]
    candidates: int
    times: tuple[tuple[str, float], ...]
    machine: str
    settings: str
    commands: tuple[Command, ...]
    library: Path

    @property
    def pictures(self) -> int:
        """How many pictures the demo drew: all were judged, and not all are shown."""
        judged = [concept.measures[0].shares for concept in self.concepts] + [self.pair_measures[0].shares]
        return sum(share.count for shares in judged for kind, share in shares.items() if kind != TRUE)

    @property
    def learned_before(self) -> bool:
        """Whether an earlier run had learned any of it."""
        return any(concept.reused or concept.seconds is None for concept in self.concepts)

    @property
    def seconds(self) -> float:
        """How long this run took in all."""
        return sum(seconds for _, seconds in self.times)
