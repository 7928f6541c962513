"""Pictures of several sizes as one set: what an epoch shows of it, in tensors of one size each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from studio.buckets import Size, nearest_size
from studio.images import Picture
from studio.models import BaseModel
from studio.trainers.captions import prompts_for, without_trigger
from studio.trainers.data import Batch, Example, Examples, encode_examples
from studio.trainers.recipe import Recipe


@dataclass(frozen=True)
class Dataset:
    """Examples in buckets of one size each; `shown` are the (bucket, place in it) of an epoch, before it is shuffled:
    one that is repeated stands there several times."""

    buckets: tuple[Examples, ...]
    shown: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.shown)

    def batches(self, chosen: list[int], generator: torch.Generator) -> list[tuple[list[int], Batch]]:
        """What `chosen` of an epoch show, a batch for each bucket with the places in `chosen` of its samples; a VAE
        with moments is sampled anew with `generator`."""
        places: dict[int, list[int]] = {}
        for place, one in enumerate(chosen):
            places.setdefault(self.shown[one][0], []).append(place)
        return [
            (found, self.buckets[bucket].batch([self.shown[chosen[place]][1] for place in found], generator))
            for bucket, found in places.items()
        ]


def examples_of(
    pictures: Sequence[Picture], recipe: Recipe, sizes: tuple[Size, ...]
) -> tuple[list[Example], list[int]]:
    """`pictures` with each of their prompts, at the nearest of `sizes`, and how often an epoch shows them."""
    made: list[Example] = []
    repeats: list[int] = []
    for picture in pictures:
        size = nearest_size(picture.width, picture.height, sizes)
        for prompt in prompts_for(picture, recipe):
            plain = without_trigger(prompt, recipe) if recipe.masked else None
            made.append(Example(picture.path, prompt, plain, masked=recipe.masked, size=size))
            repeats.append(picture.repeats)
    return made, repeats


def encode_dataset(
    base: BaseModel,
    examples: Sequence[Example],
    resolution: int,
    cache: Path,
    true_sizes: bool,
    repeats: Sequence[int] | None = None,
) -> Dataset:
    """`examples`, each shown `repeats` times in an epoch, or once; encoded as by `encode_examples`."""
    by_size: dict[Size | None, list[Example]] = {}
    where: list[tuple[int, int]] = []
    for one in examples:
        bucket = by_size.setdefault(one.size, [])
        where.append((list(by_size).index(one.size), len(bucket)))
        bucket.append(one)
    buckets = [encode_examples(base, bucket, resolution, cache, true_sizes) for bucket in by_size.values()]
    times = repeats or [1] * len(examples)
    shown = tuple(place for place, count in zip(where, times, strict=True) for _ in range(count))
    return Dataset(tuple(buckets), shown)
