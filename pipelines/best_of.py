"""Of several candidates the one that best shows what was asked: each concept itself, nothing of it in another, and the
prompt obeyed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL.Image import Image

from studio.bases import Sizes
from studio.events import Emit, Phase, Step
from studio.pipelines.evaluation import Scorer, Scores
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.evaluation_table import MAIN
from studio.pipelines.generate import batches_of
from studio.pipelines.settings import GenerateSettings

MERITS = ("success", *MAIN)  # by weight
Draw = Callable[[GenerateSettings], list[Image]]


@dataclass(frozen=True)
class Candidate:
    """A picture, and what is said of it."""

    seed: int
    picture: Image
    scores: Scores

    @property
    def merit(self) -> tuple[float, ...]:
        """To compare candidates of one case by."""
        return tuple(self.scores[name] for name in MERITS if name in self.scores)


def best_of(
    number: int, case: Case, sizes: Sizes, draw: Draw, scorers: Sequence[Scorer], emit: Emit
) -> list[list[Candidate]]:
    """For each picture that `case` asks for its `number` candidates, the best first; of equals the first drawn. Picture
    i has the seeds from `seed + i number` on."""
    settings = replace(case.settings, count=case.settings.count * number)
    emit(Phase("Draw candidates", settings.count))
    seeds: list[int] = []
    pictures: list[Image] = []
    for part in batches_of(settings, sizes):
        pictures += draw(replace(settings, seed=part[0], count=len(part)))
        seeds += part
        emit(Step(len(seeds), settings.count))
    emit(Phase("Choose"))
    scores: list[Scores] = [{} for _ in pictures]
    for scorer in scorers:
        scores = [one | more for one, more in zip(scores, scorer(case, pictures), strict=True)]
    candidates = list(map(Candidate, seeds, pictures, scores))
    groups = [candidates[at : at + number] for at in range(0, len(candidates), number)]
    return [sorted(group, key=lambda one: one.merit, reverse=True) for group in groups]
