"""Do the two judges agree? Asked of pictures that the base drew, whose truth nobody knows."""

import random
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from studio.events import Emit, Phase
from studio.judge import Judge, Reading
from studio.models import BaseModel
from studio.picturebook import caption, scenes
from studio.pipelines.base_bench import draw_prompts
from studio.stats import Share

FIELDS = ("kind", "colour", "second", "pattern", "background", "style")


def agreement(one: Sequence[Reading], other: Sequence[Reading]) -> dict[str, Share]:
    """How often two judges read the same value, by attribute; a second colour only where neither says plain."""
    pairs = list(zip(one, other, strict=True))

    def counts(field: str, a: Reading, b: Reading) -> bool:
        return field != "second" or "plain" not in (a.pattern, b.pattern)

    same = {f: [getattr(a, f) == getattr(b, f) for a, b in pairs if counts(f, a, b)] for f in FIELDS}
    return {field: Share.of(found) for field, found in same.items() if found}


def bench_agreement(
    base: BaseModel, judges: tuple[Judge, Judge], count: int, seed: int, emit: Emit
) -> tuple[dict[str, Any], list[Image]]:
    """(shares with intervals, pictures): `count` pictures of one subject that the base never saw, read by both."""
    emit(Phase("drawing pictures for both judges", count))
    chosen = scenes(seed, count, held_out=True, subjects=1)
    prompts = [caption(scene, random.Random(f"agree {n}"), 0, 0) for n, scene in enumerate(chosen)]
    pictures = draw_prompts(base, prompts, range(seed, seed + count), steps=25, guidance=2.5, emit=emit)
    first, second = (judge.read(pictures) for judge in judges)
    return {field: share.rounded() for field, share in agreement(first, second).items()}, pictures
