"""What a training learns from: of each of its concepts the pictures, the class pictures and the pictures of two."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from studio.bases import BaseSource, source_sizes
from studio.buckets import nearest_size, told_sizes, training_sizes
from studio.events import Emit, Notice
from studio.home import Home
from studio.images import Picture, check_decodable, check_masks, dataset_notices, mask_file
from studio.models import BaseModel, module_id
from studio.trainers.cache import file_id
from studio.trainers.captions import names_another, pictures_of, prompt_for, without_trigger
from studio.trainers.data import Example
from studio.trainers.dataset import Dataset, encode_dataset, examples_of
from studio.trainers.pairs import both_examples, pair_examples
from studio.trainers.prior import class_examples
from studio.trainers.recipe import Recipe
from studio.trainers.validation import divided


@dataclass(frozen=True)
class Part:
    """Examples of one concept or class, and how often an epoch shows each; parts of one kind take turns."""

    examples: list[Example]
    repeats: list[int]


@dataclass(frozen=True)
class Material:
    """The parts of a training by kind: what is learned `own`, what is `held` out, class pictures and pairs."""

    own: list[Part]
    held: list[Part]
    prior: list[Part]
    pairs: list[Part]
    masks: list[str]

    def identity(self, base: BaseModel) -> list[object]:
        """All that tells this material from another, to be hashed."""
        every = [one for kind in (self.own, self.prior, self.pairs) for part in kind for one in part.examples]
        used: list[object] = [
            (file_id(one.path), one.prompt, one.plain, one.region, *([one.beyond] if one.beyond else []))
            for one in every
        ]
        repeats = [times for part in self.own for times in part.repeats]
        used += [repeats] if set(repeats) != {1} else []
        used += [(file_id(one.path), one.prompt) for part in self.held for one in part.examples]
        several = [[len(part.examples) for part in kind] for kind in (self.own, self.prior, self.pairs)]
        turns = [several] if len(self.own) > 1 else []
        return [module_id(base.unet), module_id(base.vae), used, *self.masks, *turns]


def check_pictures(recipe: Recipe, source: BaseSource, emit: Emit) -> list[list[Picture]]:
    """The pictures of each concept; tells what the user should know of them. Raises UsageError for what cannot be
    learned from."""
    found = pictures_of(recipe)
    for view, pictures in zip(recipe.views, found, strict=True):
        who = f"{view.name}: " if recipe.others else ""
        check_decodable(pictures)
        if recipe.masked and (whole := check_masks(pictures)):
            emit(Notice(f"{who}Pictures without a mask are learned as a whole: {', '.join(whole)}."))
        divided(pictures, recipe)
        least = 1 if recipe.method == "b-lora" else 2
        for notice in dataset_notices(view.pictures, pictures, least):
            emit(Notice(f"{who}{notice}"))
        if recipe.buckets:
            sizes = training_sizes(source_sizes(source), recipe.resolution, buckets=True)
            told = told_sizes(nearest_size(one.width, one.height, sizes) for one in pictures)
            emit(Notice(f"{who}{told}."))
    return found


def gathered(
    base: BaseModel, recipe: Recipe, pictures: Sequence[Sequence[Picture]], home: Home, emit: Emit
) -> Material:
    """What `recipe` learns from `pictures`, a list for each of its concepts; what is missing is drawn by `base`."""
    sizes, cache = training_sizes(base.sizes, recipe.resolution, recipe.buckets), home.cache / "class-pictures"
    found = Material([], [], [], [], [])
    captions: dict[str, list[str]] = {}
    for view, those in zip(recipe.views, pictures, strict=True):
        shown, aside = divided(list(those), view)
        found.own.append(Part(*examples_of(shown, view, sizes)))
        found.held.append(Part(*examples_of(aside, view, sizes)))
        files = [mask_file(picture.path) for picture in shown if recipe.masked]
        found.masks.extend(file_id(file) for file in files if file.is_file())
        said = [without_trigger(prompt_for(picture, view), view) for picture in shown]
        captions.setdefault(view.class_word, []).extend(said)
    if recipe.prior_preservation:
        of_class = {view.class_word: view for view in reversed(recipe.views)}  # the first of each, and once
        for word, said in captions.items():
            made = class_examples(base, of_class[word], said, cache, emit)
            found.prior.append(Part(made, [1] * len(made)))
    if recipe.pair_share:
        alone = [
            (view, [one for one in part.examples if not names_another(one.prompt, view)])
            for view, part in zip(recipe.views, found.own, strict=True)
        ]
        beside = [(view, own) for view, own in alone if view.pair_prompts and own]
        scenes = [pair_examples(base, view, own, cache, emit) for view, own in beside]
        scenes += [both_examples(base, one, other, cache, emit) for one, other in combinations(beside, 2)]
        found.pairs.extend(Part(made, [1] * len(made)) for made in scenes)
    return found


def encoded(
    base: BaseModel, parts: Sequence[Part], recipe: Recipe, cache: Path, true_sizes: bool, flip: bool = False
) -> Dataset | None:
    """The examples of all parts, encoded, of which each part's come in turn; with `flip` mirrored in half of their
    showings. None where there are none."""
    every = [
        (one, times, n) for n, part in enumerate(parts) for one, times in zip(part.examples, part.repeats, strict=True)
    ]
    every += [(replace(one, mirrored=True), times, n) for one, times, n in every if flip]
    if not every:
        return None
    examples, repeats, groups = map(list, zip(*every, strict=True))
    return encode_dataset(base, examples, recipe.resolution, cache, true_sizes, repeats, groups)
