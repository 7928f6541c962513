"""Which score to believe for what? Every score reads true drawings, and drawings spoilt in one known way.

A score is worth what it tells apart: the chance that a true picture has the better score than a spoilt one (the area
under the ROC curve; one half is a coin), and its correlation with the truth. All pictures pass through the base's VAE,
as everything that the studio draws.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from studio.concepts import Concept
from studio.encoders import Clip, Encoder
from studio.events import Emit, Phase, Step
from studio.judge import Box as Sides
from studio.models import BaseModel
from studio.picturebook import (
    BACKGROUND_WORDS,
    BACKGROUNDS,
    SAMPLE_SUBJECTS,
    STYLE_WORDS,
    Scene,
    Subject,
    distractors,
)
from studio.picturebook_draw import render
from studio.pipelines.concept_bench import SCENES
from studio.pipelines.decoding import through_vae
from studio.pipelines.evaluation import Scorer, Scores
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.evaluation_table import SENSES
from studio.pipelines.methods import METHODS
from studio.pipelines.protocols import columns, in_a_row
from studio.pipelines.scorers import WHOLE, JudgeA, Likeness, Watch, sample_reference
from studio.pipelines.settings import GenerateSettings

UNTOLD, WHOLE_ALONE = ", no places", ", whole"  # of scores that are not told where, and that look at all of the picture
TRUE = "true"
SHOWN = 16  # pictures of each kind on the sheet
Spoil = Callable[[Scene, random.Random], Scene | Image.Image]


def swapped_colours(scene: Scene, rng: random.Random) -> Scene:
    """Each has the other's colours, of pattern and accessory too."""
    left, right = scene.subjects
    fields = ("colour", "second", "accent")
    return _pair(scene, *(replace(a, **{f: getattr(b, f) for f in fields}) for a, b in ((left, right), (right, left))))


def blended(scene: Scene, rng: random.Random) -> Scene:
    """Each takes two of colours, pattern and accessory from the other, as far as they differ."""
    left, right = scene.subjects
    parts = {"colour": ("colour", "second"), "pattern": ("pattern",), "accessory": ("accessory", "accent")}
    differ = [part for part in parts if getattr(left, part) != getattr(right, part)]
    fields = [field for part in rng.sample(differ, min(len(differ), 2)) for field in parts[part]]
    return _pair(scene, *(replace(a, **{f: getattr(b, f) for f in fields}) for a, b in ((left, right), (right, left))))


def one_missing(scene: Scene, rng: random.Random) -> Scene:
    """One of them is not there."""
    side = rng.randrange(2)
    return replace(scene, subjects=(scene.subjects[side],), size="small", middle=(0.25, 0.75)[side])


def one_twice(scene: Scene, rng: random.Random) -> Scene:
    """One stands in the place of the other, too."""
    side = rng.randrange(2)
    return _pair(scene, scene.subjects[side], scene.subjects[side])


def exchanged(scene: Scene, rng: random.Random) -> Scene:
    """Each stands where the other should."""
    return _pair(scene, *reversed(scene.subjects))


def nearly(scene: Scene, rng: random.Random) -> Scene:
    """One of them is another that differs from it in one thing."""
    side = rng.randrange(2)
    other = rng.choice(distractors(scene.subjects[side]))
    return _pair(scene, *(other if n == side else one for n, one in enumerate(scene.subjects)))


def elsewhere(scene: Scene, rng: random.Random) -> Scene:
    """Before another background."""
    return replace(scene, background=rng.choice([one for one in BACKGROUNDS if one != scene.background]))


def blurred(scene: Scene, rng: random.Random) -> Image.Image:
    """Out of focus by one and a half pixels."""
    return render(scene).filter(ImageFilter.GaussianBlur(1.5))


def burnt(scene: Scene, rng: random.Random) -> Image.Image:
    """With one and a half times the saturation and contrast."""
    return ImageEnhance.Contrast(ImageEnhance.Color(render(scene)).enhance(1.5)).enhance(1.5)


SPOILT: dict[str, tuple[str, Spoil]] = {  # by name: the question that it is about, and how it is done
    "one thing of one differs": ("Is it the concept?", nearly),
    "blended": ("Is anything bleeding?", blended),
    "colours swapped": ("Is anything bleeding?", swapped_colours),
    "one missing": ("Is everyone there?", one_missing),
    "one twice": ("Is everyone there?", one_twice),
    "sides exchanged": ("Is each in its place?", exchanged),
    "another background": ("Is the prompt obeyed?", elsewhere),
    "blurred": ("Is the picture sound?", blurred),
    "burnt": ("Is the picture sound?", burnt),
}


class AtAll(Likeness):
    """As papers have it: every concept is held against the whole picture."""

    def windows(self, case: Case, name: str) -> list[Sides]:
        """The whole."""
        return [WHOLE]


class Tower:
    """The last feature map of a CLIP's picture tower, its mean over places: a network's eye without its words."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.name = clip, f"tower of {clip.name}"

    @property
    def weights(self) -> str:
        """The CLIP's."""
        return self.clip.weights

    def images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """[n, d] of length 1."""
        return torch.nn.functional.normalize(self.clip.maps(pictures, 2)[0].mean((2, 3)), dim=1)


@dataclass(frozen=True)
class Read:
    """A picture's scores, the way it is spoilt, and the pair that it shows."""

    way: str
    pair: tuple[str, str]
    scores: Scores


def bench_metrics(
    base: BaseModel, clip: Clip, names: Sequence[str], scenes: int, seed: int, emit: Emit
) -> tuple[dict[str, Any], dict[str, list[Image.Image]]]:
    """(report, the first pictures of each kind): for every way to spoil a picture and every score what it tells apart,
    over all ordered pairs of the sample subjects `names` in `scenes` scenes each; and by question the score to
    believe."""
    pairs = list(permutations(names, 2))
    sheets: dict[str, list[Image.Image]] = {}
    scorers = _scorers(clip)
    found: list[Read] = []
    emit(Phase("Read true and spoilt drawings", len(pairs)))
    for at, pair in enumerate(pairs):
        for n in range(scenes):
            ground, style = SCENES[(at + n) % len(SCENES)]
            rng = random.Random(f"metrics {seed} {pair} {n}")
            scene = Scene(
                (SAMPLE_SUBJECTS[pair[0]], SAMPLE_SUBJECTS[pair[1]]), ground, style, "big", rng.randrange(2**31)
            )
            spoilt = {TRUE: scene} | {way: spoil(scene, rng) for way, (_, spoil) in SPOILT.items()}
            pictures = through_vae(
                base, [one if isinstance(one, Image.Image) else render(one) for one in spoilt.values()]
            )
            words = in_a_row([f"a <{one}>" for one in pair])
            prompt = f"{words} {BACKGROUND_WORDS[ground][0]}, {STYLE_WORDS[style][0]}"
            scores = _read(scorers, pair, prompt, pictures)
            found += [Read(way, pair, one) for way, one in zip(spoilt, scores, strict=True)]
            for way, picture in zip(spoilt, pictures, strict=True):
                sheets.setdefault(way, []).extend([picture] if len(found) <= SHOWN * len(spoilt) else [])
        emit(Step(at + 1, len(pairs)))
    return _report(found), sheets


def _scorers(clip: Clip) -> list[Scorer]:
    references = {name: sample_reference(one) for name, one in SAMPLE_SUBJECTS.items()}
    classes = {name: one.kind for name, one in SAMPLE_SUBJECTS.items()}
    encoders: dict[str, Encoder] = {"CLIP": clip, "features": Tower(clip)}
    kinds = [kind(name, one, references, classes) for name, one in encoders.items() for kind in (Likeness, AtAll)]
    return [JudgeA(references), *kinds, Watch()]


def _read(scorers: Sequence[Scorer], pair: tuple[str, str], prompt: str, pictures: list[Image.Image]) -> list[Scores]:
    concepts = tuple(Concept(name, "", "", "", "", "", Path()) for name in pair)
    case = Case("", GenerateSettings(prompt), concepts, METHODS["merge"], columns(pair))
    rows: list[Scores] = [{} for _ in pictures]
    for scorer in scorers:
        if not isinstance(scorer, AtAll):
            rows = [one | more for one, more in zip(rows, scorer(case, pictures), strict=True)]
        if isinstance(scorer, Likeness):
            added = WHOLE_ALONE if isinstance(scorer, AtAll) else UNTOLD
            untold = scorer(replace(case, places=None), pictures)
            kept = [{name + added: value for name, value in one.items() if not name.endswith("-T")} for one in untold]
            rows = [one | more for one, more in zip(rows, kept, strict=True)]
    return rows


def _report(found: Sequence[Read]) -> dict[str, Any]:
    scores = list(dict.fromkeys(name for one in found for name in one.scores))
    ways = {way: [one for one in found if one.way == way] for way in (TRUE, *SPOILT)}
    about = [question for question, _ in SPOILT.values()]
    rows = {
        way: {name: told_apart(ways[TRUE], ways[way], name) for name in scores} | {"question": question}
        for way, (question, _) in SPOILT.items()
    }
    return {
        "pictures of each kind": len(ways[TRUE]),
        "told apart": rows,
        "correlation with the truth": {name: correlation(found, name) for name in scores},
        "believe": {question: _best(rows, scores, question) for question in dict.fromkeys(about)},
    }


def told_apart(true: Sequence[Read], spoilt: Sequence[Read], score: str, draws: int = 400) -> dict[str, float]:
    """The chance that a true picture has the better score, half of equals counted, with a 95 % bootstrap interval that
    draws whole pairs of subjects."""
    sign = -1.0 if _sense(score) == "lower" else 1.0
    better = {}
    for pair in dict.fromkeys(one.pair for one in true):
        a, b = (
            np.array([sign * one.scores[score] for one in several if one.pair == pair]) for several in (true, spoilt)
        )
        better[pair] = (a, b)
    groups = list(better.values())

    def area(chosen: Iterable[int]) -> float:
        a, b = (np.concatenate([groups[n][side] for n in chosen]) for side in (0, 1))
        return float((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2)

    rng = np.random.default_rng(0)
    low, high = np.quantile([area(rng.integers(len(groups), size=len(groups))) for _ in range(draws)], (0.025, 0.975))
    value = area(range(len(groups)))
    return {"value": round(value, 3), "low": round(float(low), 3), "high": round(float(high), 3), "count": len(true)}


def correlation(found: Sequence[Read], score: str) -> float:
    """Of the score with the truth, over all pictures: Pearson's, positive where the score is right."""
    sign = -1.0 if _sense(score) == "lower" else 1.0
    values, truth = np.array([(sign * one.scores[score], one.way == TRUE) for one in found], dtype=float).T
    return round(float(np.corrcoef(values, truth)[0, 1]), 3) if values.std() else 0.0


def _sense(score: str) -> str:
    own = score.partition(",")[0].replace("features", "DINO")
    return SENSES[own].better


def _best(rows: Mapping[str, Mapping[str, Any]], scores: Sequence[str], question: str) -> dict[str, str]:
    """The score that tells most apart, on the mean of the ways to spoil that are about `question`: of all, and of those
    that need no judge."""
    ways = [row for row in rows.values() if row["question"] == question]

    def worth(score: str) -> float:  # a guard's alarm is a change either way
        values = [row[score]["value"] for row in ways]
        return sum(values if _sense(score) else [max(one, 1 - one) for one in values]) / len(ways)

    general = [one for one in scores if one.startswith(("CLIP", "features", "sharpness", "saturation"))]
    return {"with a judge": max(scores, key=worth), "on any base": max(general, key=worth)}


def _pair(scene: Scene, left: Subject, right: Subject) -> Scene:
    return replace(scene, subjects=(left, right))
