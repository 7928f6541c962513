"""What choosing is worth: the best of several candidates by judge A beside the first of them, both read by judge B."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from PIL.Image import Image

from studio.events import Emit, Phase, Step, silent
from studio.judge import Judge
from studio.models import BaseModel
from studio.pipelines.best_of import Candidate, best_of
from studio.pipelines.compose import compose
from studio.pipelines.compose_arms import Ask, Known
from studio.pipelines.compose_bench import ComposeBench
from studio.pipelines.concept_bench import gallery_of
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.methods import METHODS
from studio.pipelines.scorers import JudgeA, sample_reference
from studio.pipelines.scores import Marks, mark_places
from studio.pipelines.settings import GenerateSettings
from studio.stats import Mean, Share

FIRST, BEST = "the first", "the best"


def bench_best_of(
    base: BaseModel, judge: Judge, groups: Sequence[tuple[Known, ...]], number: int, plan: ComposeBench, emit: Emit
) -> tuple[dict[str, Any], dict[str, list[Image]]]:
    """(report, pictures of both): `plan.seeds` pictures of each group by `auto`, without boxes, each the best of
    `number` candidates; success and leak of the first candidates and of the best, and their paired differences with
    intervals that draw whole groups."""
    emit(Phase("Draw and choose", len(groups)))
    everyone = {one.concept.name: one for group in groups for one in group}
    chooser = JudgeA({name: sample_reference(one.subject) for name, one in everyone.items()})
    gallery = cache(lambda subject: gallery_of(judge, subject))
    marks: dict[str, list[Marks]] = {FIRST: [], BEST: []}
    pictures: dict[str, list[Image]] = {FIRST: [], BEST: []}
    of_group: list[tuple[str, ...]] = []
    for at, group in enumerate(groups):
        for n in range(plan.seeds):
            ask = plan.ask(group, [n])
            candidates = _candidates(base, ask, number, chooser)
            first = min(candidates, key=lambda one: one.seed)
            for name, one in ((FIRST, first), (BEST, candidates[0])):
                galleries = [gallery(subject) for subject in ask.subjects]
                marks[name] += mark_places(judge, galleries, ask.subjects, [one.picture], [ask.scene])
                pictures[name].append(one.picture)
            of_group.append(tuple(one.concept.name for one in group))
        emit(Step(at + 1, len(groups)))
    return _report(marks, of_group, number, plan), pictures


def _candidates(base: BaseModel, ask: Ask, number: int, chooser: JudgeA) -> list[Candidate]:
    """The best first; their seeds are other benchmarks' times `number`, and so nobody's else."""
    words = [f"a <{one.concept.name}>" for one in ask.members]
    settings = replace(ask.settings(words, base.native_size), seed=ask.seeds[0] * number, count=1)
    chosen = [(one.concept, 1.0) for one in ask.members]
    case = Case("", settings, tuple(one for one, _ in chosen), METHODS["auto"])
    method = METHODS["auto"]

    def pictures(asked: GenerateSettings) -> list[Image]:
        return compose(base, asked, chosen, method.make(), silent)

    return best_of(number, case, base.sizes, pictures, [chooser], silent)[0]


def _report(
    marks: dict[str, list[Marks]], of_group: list[tuple[str, ...]], number: int, plan: ComposeBench
) -> dict[str, Any]:
    measures: dict[str, Callable[[Marks], bool]] = {
        "success": lambda one: one.success,
        "all in place": lambda one: all(one.in_place),
        "leak": lambda one: one.leak,
        "background": lambda one: one.background,
    }
    both = list(zip(marks[FIRST], marks[BEST], strict=True))
    return {
        "candidates": number,
        "groups": ["+".join(group) for group in dict.fromkeys(of_group)],
        "seeds": plan.seeds,
        "steps": plan.steps,
        "judge": "B",
        "chosen by": "A",
        "rows": {
            name: {what: Share.of([told(one) for one in several]).rounded() for what, told in measures.items()}
            for name, several in marks.items()
        },
        "gain": {
            what: Mean.of([float(told(best)) - told(first) for first, best in both], of_group).rounded()
            for what, told in measures.items()
        },
    }
