"""How well do ways to compose work? Two concepts side by side in many scenes, each judged in its half, by every method.

All methods draw the same prompts from the same seeds; what they need to know of places is that of the prompt: halves.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from studio.concepts import Concept
from studio.events import Emit, Phase, silent
from studio.judge import Gallery, Judge
from studio.models import BaseModel
from studio.picturebook import BACKGROUND_WORDS, SAMPLE_SUBJECTS, STYLE_WORDS, Subject, distractors
from studio.pipelines.compose import Composer, compose
from studio.pipelines.scores import PairMarks, draw_truth, mark_pairs
from studio.pipelines.settings import GenerateSettings
from studio.regions import Box, Layout
from studio.stats import Share

SCENES = (("paper", "flat"), ("grass", "flat"), ("sky", "flat"), ("night", "flat"))
TRUTH = "true drawings"


@dataclass(frozen=True)
class Known:
    """A concept, and the subject that it should be."""

    concept: Concept
    subject: Subject


@dataclass(frozen=True)
class ComposeBench:
    """`seeds` pictures of each pair; the scenes take turns."""

    seeds: int = 8
    seed: int = 9_500_000
    steps: int = 25
    guidance: float = 2.5


@dataclass
class Marked:
    """What a method drew of a pair, what the judge says of it, and what it cost."""

    pair: tuple[str, str]
    pictures: list[Image]
    marks: list[PairMarks]
    seconds: float
    same_class: bool


def success(mark: PairMarks) -> bool:
    """Both in place, nothing of one in the other, the prompt's background obeyed."""
    return mark.both and not mark.leak and mark.background


def halves(left: str, right: str) -> Layout:
    """One concept on each side, with room above."""
    return Layout({left: Box(0, 0, 0.5, 1), right: Box(0.5, 0, 1, 1)})


def bench_pairs(
    base: BaseModel,
    judge: Judge,
    pairs: Sequence[tuple[Known, Known]],
    methods: Mapping[str, Callable[[], Composer]],
    plan: ComposeBench,
    emit: Emit,
) -> dict[str, list[Marked]]:
    """What each method makes of each pair; under `TRUTH` what the judge says of true drawings of the same."""
    found: dict[str, list[Marked]] = {name: [] for name in (TRUTH, *methods)}
    asked = [SCENES[n * len(SCENES) // plan.seeds] for n in range(plan.seeds)]
    for number, pair in enumerate(pairs):
        names, subjects = (pair[0].concept.name, pair[1].concept.name), (pair[0].subject, pair[1].subject)
        emit(Phase(f"{names[0]} and {names[1]} ({number + 1} of {len(pairs)})"))
        galleries = (_gallery(judge, *subjects), _gallery(judge, *subjects[::-1]))
        for name in found:
            began = time.monotonic()
            if name == TRUTH:
                pictures = draw_truth(subjects, asked, plan.seed)
            else:
                pictures = _draw(base, pair, asked, methods[name](), plan)
            seconds = (time.monotonic() - began) / len(pictures)
            marks = mark_pairs(judge, galleries, subjects, pictures, asked)
            found[name].append(Marked(names, pictures, marks, seconds, subjects[0].kind == subjects[1].kind))
    return found


def _gallery(judge: Judge, own: Subject, other: Subject) -> Gallery:
    """Both, the sample concepts, and the 20 nearest to the first."""
    return Gallery(judge, list(dict.fromkeys([own, other, *SAMPLE_SUBJECTS.values(), *distractors(own)])))


def _draw(
    base: BaseModel,
    pair: tuple[Known, Known],
    asked: Sequence[tuple[str, str]],
    composer: Composer,
    plan: ComposeBench,
) -> list[Image]:
    """One picture a seed; those of one scene in one batch."""
    left, right = (one.concept.name for one in pair)
    drawn: list[Image] = []
    for ground, style in dict.fromkeys(asked):
        words = f"{BACKGROUND_WORDS[ground][0]}, {STYLE_WORDS[style][0]}"
        settings = GenerateSettings(
            f"a <{left}> on the left and a <{right}> on the right {words}",
            steps=plan.steps,
            guidance=plan.guidance,
            seed=plan.seed + len(drawn),
            count=asked.count((ground, style)),
        )
        drawn += compose(base, settings, [(one.concept, 1.0) for one in pair], composer, silent, halves(left, right))
    return drawn


def report_of(found: Mapping[str, list[Marked]], plan: ComposeBench) -> dict[str, Any]:
    """The table by method: success and its parts with intervals, same-class pairs apart, seconds a picture."""
    report: dict[str, Any] = {"judge": "B", "plan": vars(plan), "pairs": [one.pair for one in found[TRUTH]]}
    report["methods"] = {}
    for name, several in found.items():
        marks = [mark for one in several for mark in one.marks]
        same = [mark for one in several if one.same_class for mark in one.marks]
        report["methods"][name] = {
            "success": Share.of([success(mark) for mark in marks]).rounded(),
            "both in place": Share.of([mark.both for mark in marks]).rounded(),
            "in place": Share.of([side for mark in marks for side in (mark.left, mark.right)]).rounded(),
            "leak": Share.of([mark.leak for mark in marks]).rounded(),
            "background obeyed": Share.of([mark.background for mark in marks]).rounded(),
            **({"success, same class": Share.of([success(mark) for mark in same]).rounded()} if same else {}),
            "seconds a picture": round(sum(one.seconds for one in several) / len(several), 2),
            "by pair": {" + ".join(one.pair): sum(map(success, one.marks)) / len(one.marks) for one in several},
        }
    return report
