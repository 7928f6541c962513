"""How good is the embedded base? Pictures from captions of subjects that its training never showed, read by a judge."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from studio.events import Emit, Phase, Step
from studio.judge import Box, Judge, Reading
from studio.models import BaseModel
from studio.picturebook import Scene, caption, scenes
from studio.picturebook_draw import render
from studio.stats import Share

AT_ONCE = 32
HALVES: tuple[Box, Box] = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))


@dataclass(frozen=True)
class BaseBench:
    """What to draw: `singles` pictures of one subject and `pairs` of two, seeds counting up from `seed`."""

    singles: int = 500
    pairs: int = 200
    seed: int = 5_000_000
    steps: int = 25
    guidance: float = 2.5


def draw_prompts(
    base: BaseModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    emit: Emit,
    size: tuple[int, int] | None = None,
) -> list[Image]:
    """One picture for each prompt and seed, in batches; of `size`, width and height, or the base's native one."""
    width, height = size or base.native_size
    pictures: list[Image] = []
    for start in range(0, len(prompts), AT_ONCE):
        chunk = slice(start, start + AT_ONCE)
        pictures += base.pipe(
            prompt=list(prompts[chunk]), width=width, height=height, num_inference_steps=steps, guidance_scale=guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[chunk]],
        ).images  # fmt: skip
        emit(Step(len(pictures), len(prompts)))
    return pictures


def read_halves(judge: Judge, images: Sequence[Image]) -> list[tuple[Reading, Reading]]:
    """What stands on the left and on the right of each picture."""
    left, right = (judge.read(images, [half] * len(images)) for half in HALVES)
    return list(zip(left, right, strict=True))


def score_singles(judge: Judge, chosen: Sequence[Scene], images: Sequence[Image]) -> dict[str, Share]:
    """Share of pictures in which each attribute is the scene's; what no scene has is left out."""
    readings = judge.read(images)
    truth = [(reading, scene, scene.subjects[0]) for reading, scene in zip(readings, chosen, strict=True)]
    right = {
        "class": [r.kind == s.kind for r, _, s in truth],
        "colour": [r.colour == s.colour for r, _, s in truth],
        "pattern": [r.pattern == s.pattern for r, _, s in truth],
        "second colour": [r.second == s.second for r, _, s in truth if s.pattern != "plain"],
        "background": [r.background == scene.background for r, scene, _ in truth],
        "style": [r.style == scene.style for r, scene, _ in truth],
    }
    return {question: Share.of(found) for question, found in right.items() if found}


def score_pairs(judge: Judge, chosen: Sequence[Scene], images: Sequence[Image]) -> dict[str, Share]:
    """Share of pictures in which subjects stand where they should."""
    halves = read_halves(judge, images)
    right_class = [[h[i].kind == s.subjects[i].kind for i in (0, 1)] for h, s in zip(halves, chosen, strict=True)]
    right_both = [[h[i].shows(s.subjects[i]) for i in (0, 1)] for h, s in zip(halves, chosen, strict=True)]
    return {
        "class left": Share.of([left for left, _ in right_class]),
        "class right": Share.of([right for _, right in right_class]),
        "both classes and colours in place": Share.of([all(both) for both in right_both]),
    }


def bench_base(
    base: BaseModel, judge: Judge, plan: BaseBench, emit: Emit
) -> tuple[dict[str, Any], dict[str, list[Image]]]:
    """(report, pictures by its parts): shares with intervals; beside each, `on_renders`: the judge on true renders of
    the same scenes."""
    pictures: dict[str, list[Image]] = {}
    report: dict[str, Any] = {"base": base.source.name, "plan": vars(plan), "captions": "held-out subjects"}
    for name, count, subjects, score in (
        ("one subject", plan.singles, 1, score_singles),
        ("two subjects", plan.pairs, 2, score_pairs),
    ):
        chosen = list(scenes(plan.seed + subjects, count, held_out=True, subjects=subjects))
        prompts = [caption(s, random.Random(f"bench {i}"), drop=0, identifiers=0) for i, s in enumerate(chosen)]
        emit(Phase(name, count))
        began = time.monotonic()
        images = draw_prompts(base, prompts, range(plan.seed, plan.seed + count), plan.steps, plan.guidance, emit)
        seconds = (time.monotonic() - began) / count
        drawn, true = score(judge, chosen, images), score(judge, chosen, [render(s) for s in chosen])
        report[name] = {k: {**drawn[k].rounded(), "on_renders": true[k].rounded()["value"]} for k in drawn}
        report[name + ", seconds a picture"] = round(seconds, 3)
        pictures[name] = images
    return report, pictures
