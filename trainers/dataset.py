"""Pictures of several sizes as one set: what an epoch shows of it, in tensors of one size each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from studio.buckets import Size, nearest_size
from studio.images import Picture
from studio.models import BaseModel
from studio.trainers.captions import prompts_for, without_trigger
from studio.trainers.data import Batch, Example, Examples, chosen_from, encode_examples
from studio.trainers.recipe import Recipe


@dataclass(frozen=True)
class Dataset:
    """Examples in buckets of one size each; `shown` are the (bucket, place in it) of an epoch, before it is shuffled:
    one that is repeated stands there several times. Where there are `groups` of places in `shown`, they take turns."""

    buckets: tuple[Examples, ...]
    shown: tuple[tuple[int, int], ...]
    groups: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.shown)

    def next(self, first: int, count: int, *key: object) -> list[int]:
        """Which of an epoch come next after `first`, `count` of them: endless epochs of each group, however many or
        few it has, in orders that depend on `key` alone."""
        if len(self.groups) < 2:
            return chosen_from(first, count, len(self), *key)
        chosen: list[int] = []
        for place in range(first, first + count):
            turn, number = divmod(place, len(self.groups))
            group = self.groups[number]
            chosen += [group[n] for n in chosen_from(turn, 1, len(group), *key, number)]
        return chosen

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
    groups: Sequence[int] = (),
) -> Dataset:
    """`examples`, each shown `repeats` times in an epoch, or once; encoded as by `encode_examples`.

    `groups` number what takes turns with the others, an example each.
    """
    by_size: dict[Size | None, list[Example]] = {}
    where: list[tuple[int, int]] = []
    for one in examples:
        bucket = by_size.setdefault(one.size, [])
        where.append((list(by_size).index(one.size), len(bucket)))
        bucket.append(one)
    buckets = [encode_examples(base, bucket, resolution, cache, true_sizes) for bucket in by_size.values()]
    times = repeats or [1] * len(examples)
    shown = tuple(place for place, count in zip(where, times, strict=True) for _ in range(count))
    of = [group for group, count in zip(groups, times, strict=True) for _ in range(count)] if groups else []
    turns = tuple(tuple(n for n, one in enumerate(of) if one == group) for group in dict.fromkeys(of))
    return Dataset(tuple(buckets), shown, turns)
