"""Every row of a table draws every prompt from every seed, and scores say what came of it.

A row is a concept, a step of its training or a method. Pictures and scores are kept under fingerprints of all that
decides them: what is there is not made again, by whatever evaluation it was made.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from studio.concepts import file_hash
from studio.events import Emit, Event, Notice, Phase, Step
from studio.home import write_atomic
from studio.images import load_rgb
from studio.models import BaseModel
from studio.pipelines.bench_store import fingerprint
from studio.pipelines.compose import compose
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.generate import batches_of, generate
from studio.pipelines.settings import GenerateSettings

Scores = dict[str, float]


class Scorer(ABC):
    """What gives every picture of a case some scores."""

    name: str

    @abstractmethod
    def __call__(self, case: Case, pictures: Sequence[Image.Image]) -> list[Scores]:
        """For each picture what it finds; a score that has no meaning for the case is left out."""

    def made_from(self, case: Case) -> object:
        """All that decides the scores but the pictures, as JSON: its weights, and what pictures are held against."""
        return None

    def beside(self, case: Case, pictures: Sequence[Image.Image], counterparts: Sequence[Image.Image]) -> list[Scores]:
        """What each is beside its counterpart."""
        return [{} for _ in pictures]

    def together(self, case: Case, pictures: Sequence[Image.Image]) -> Scores:
        """What can only be said of all of them, at least two."""
        return {}


@dataclass(frozen=True)
class Scored:
    """One picture, what made it, and its scores."""

    row: str
    prompt: str
    seed: int
    file: Path
    scores: Scores


@dataclass(frozen=True)
class Found:
    """All pictures, and by row and prompt what can only be said of several together."""

    pictures: list[Scored]
    together: dict[tuple[str, str], Scores]
    drawn: int  # of the pictures, those that were not there before


class Cabinet:
    """The pictures and scores of a folder, by fingerprint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def picture_file(self, key: str) -> Path:
        """Where the picture is, or would be."""
        return self.folder / "pictures" / f"{key}.png"

    def scores(self, key: str) -> Scores | None:
        """The scores kept under `key`; None where there are none, or no readable ones."""
        try:
            found = json.loads(self._scores_file(key).read_text(encoding="utf-8"))
            return {str(name): float(value) for name, value in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def keep(self, key: str, scores: Scores) -> None:
        """Raises StudioError where nothing can be written."""
        write_atomic(self._scores_file(key), lambda file: file.write_text(json.dumps(scores), encoding="utf-8"))

    def _scores_file(self, key: str) -> Path:
        return self.folder / "scores" / f"{key}.json"


def evaluate(base: BaseModel, cases: Sequence[Case], scorers: Sequence[Scorer], cabinet: Cabinet, emit: Emit) -> Found:
    """Draw and score what the cabinet does not have of `cases`, and return all of it in their order.

    A score is called as its scorer calls it; `seconds` is what drawing took. Raises UsageError for a case that its
    method cannot compose.
    """
    emit(Phase("Evaluate", len(cases)))
    weights, notices = base.weights_id(), _notices(emit)
    found, together, drawn = [], {}, 0
    for at, case in enumerate(cases):
        keys = [_made_from(weights, case, seed) for seed in case.seeds]
        drawn += _draw_missing(base, case, keys, cabinet, notices)
        scores = _scored(case, keys, scorers, cabinet)
        if case.counterpart is not None:
            scores = _beside(base, weights, case, keys, scores, scorers, cabinet, notices)
        if len(keys) > 1:
            together[case.row, case.settings.prompt] = _together(case, keys, scorers, cabinet)
        found += [
            Scored(case.row, case.settings.prompt, seed, cabinet.picture_file(key), one)
            for seed, key, one in zip(case.seeds, keys, scores, strict=True)
        ]
        emit(Step(at + 1, len(cases)))
    return Found(found, together, drawn)


def _made_from(weights: str, case: Case, seed: int) -> str:
    adapters = [(one.name, one.phrase, file_hash(one.adapter_file)) for one in case.concepts]
    settings = asdict(replace(case.settings, seed=seed, count=1))
    layout = None if case.layout is None else {name: box.sides for name, box in case.layout.boxes.items()}
    method = None if case.method is None else repr(case.method.make())
    return fingerprint((weights, adapters, method, settings, layout))


def _notices(emit: Emit) -> Emit:
    """Lets notices through, each once: what a composition warns of, it would warn of for every prompt."""
    said: set[Event] = set()

    def once(event: Event) -> None:
        if isinstance(event, Notice) and event not in said:
            said.add(event)
            emit(event)

    return once


def _draw_missing(base: BaseModel, case: Case, keys: Sequence[str], cabinet: Cabinet, emit: Emit) -> int:
    missing = [
        n for n, key in enumerate(keys) if cabinet.scores(key) is None or not cabinet.picture_file(key).is_file()
    ]
    for run in _runs(missing):
        for seeds in batches_of(replace(case.settings, seed=case.settings.seed + run[0], count=len(run)), base.sizes):
            _draw_and_keep(base, case, seeds, keys, cabinet, emit)
    return len(missing)


def _draw_and_keep(
    base: BaseModel, case: Case, seeds: range, keys: Sequence[str], cabinet: Cabinet, emit: Emit
) -> None:
    began = time.monotonic()
    pictures = _draw(base, case, replace(case.settings, seed=seeds[0], count=len(seeds)), emit)
    seconds = (time.monotonic() - began) / len(seeds)
    for seed, picture in zip(seeds, pictures, strict=True):
        n = seed - case.settings.seed
        write_atomic(cabinet.picture_file(keys[n]), lambda file, picture=picture: picture.save(file, "PNG"))
        cabinet.keep(keys[n], {"seconds": seconds})


def _draw(base: BaseModel, case: Case, settings: GenerateSettings, emit: Emit) -> list[Image.Image]:
    """The pictures of `settings`, which are the case's own but for the seeds."""
    chosen = [(one, 1.0) for one in case.concepts]
    if case.method is None:
        return generate(base, settings, chosen, emit)
    return compose(base, settings, chosen, case.method.make(), emit, case.layout)


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """`numbers`, which rise, as runs without a gap."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return runs


def _scored(case: Case, keys: Sequence[str], scorers: Sequence[Scorer], cabinet: Cabinet) -> list[Scores]:
    all_scores: list[Scores] = [cabinet.scores(key) or {} for key in keys]
    for scorer in scorers:
        own = [_made_by(scorer, case, key) for key in keys]
        there = [cabinet.scores(key) for key in own]
        missing = [n for n, one in enumerate(there) if one is None]
        made = scorer(case, _opened(cabinet, [keys[n] for n in missing])) if missing else []
        for n, one in zip(missing, made, strict=True):
            cabinet.keep(own[n], one)
            there[n] = one
        all_scores = [scores | (one or {}) for scores, one in zip(all_scores, there, strict=True)]
    return all_scores


def _made_by(scorer: Scorer, case: Case, *keys: str) -> str:
    """Scores of another version of the studio are made again; pictures are not."""
    return fingerprint((keys, version("concept-studio"), scorer.name, scorer.made_from(case)))


def _beside(
    base: BaseModel,
    weights: str,
    case: Case,
    keys: Sequence[str],
    scores: Sequence[Scores],
    scorers: Sequence[Scorer],
    cabinet: Cabinet,
    emit: Emit,
) -> list[Scores]:
    """The scores, and what the pictures are beside their counterparts."""
    if isinstance(case.counterpart, Case):
        others = [_made_from(weights, case.counterpart, seed) for seed in case.counterpart.seeds]
        _draw_missing(base, case.counterpart, others, cabinet, emit)
        counterparts = _opened(cabinet, others)
    else:
        assert case.counterpart is not None
        others = [file_hash(case.counterpart)] * len(keys)
        counterparts = [load_rgb(case.counterpart)] * len(keys)
    found = list(scores)
    for scorer in scorers:
        of = [_made_by(scorer, case, *both) for both in zip(keys, others, strict=True)]
        there = [cabinet.scores(one) for one in of]
        if None in there:
            there = scorer.beside(case, _opened(cabinet, keys), counterparts)
            for key, one in zip(of, there, strict=True):
                cabinet.keep(key, one)
        found = [one | (more or {}) for one, more in zip(found, there, strict=True)]
    return found


def _together(case: Case, keys: Sequence[str], scorers: Sequence[Scorer], cabinet: Cabinet) -> Scores:
    found: Scores = {}
    for scorer in scorers:
        own = _made_by(scorer, case, "together", *keys)
        scores = cabinet.scores(own)
        if scores is None:
            scores = scorer.together(case, _opened(cabinet, keys))
            cabinet.keep(own, scores)
        found |= scores
    return found


def _opened(cabinet: Cabinet, keys: Sequence[str]) -> list[Image.Image]:
    pictures = []
    for key in keys:
        with Image.open(cabinet.picture_file(key)) as file:
            pictures.append(file.convert("RGB"))
    return pictures
