"""Pictures of the concept beside something else, from which it learns to be one of two and to leave the other alone.

The base draws a scene of two things, and the concept's picture is pasted over the one that stands for it (Cut-Mix of
Han et al. 2023, SVDiff, arXiv:2303.11305). Only what is pasted is learned from; the rest stays what the base makes of
it. Two concepts of one training are pasted side by side too, which teaches both words in one prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import max_pool2d

from studio.events import Emit
from studio.home import write_atomic
from studio.images import load_mask, load_rgb, mask_file
from studio.models import BaseModel
from studio.trainers.cache import file_id
from studio.trainers.captions import beside, without_trigger
from studio.trainers.data import Example, generator_for, square
from studio.trainers.prior import drawn_once
from studio.trainers.recipe import Recipe

SIZES = (1.0, 0.75, 0.6)  # of a pasted picture, against the scene
WIDTHS = (0.5, 0.56)  # of what is pasted: half a scene, and for what is wide a little of the other half
_GRAIN = 96  # pixels a side in which cuts are looked for
_STANDS, _BEYOND = 0.27, 0.06  # where the middle of the left one of two stands; how much of a cut the edge may hide
_SCALED = 0.05  # how much farther off a picture counts that is scaled down: its patterns are not what they were
_AS_WELL = 0.02  # farther from its best place than the best picture, and still taken
_AT_LEAST = 2  # pictures for either side: one before a ground of its own colour tells too little
_NEAR, _BUSY = 60, 0.08  # levels of grey, and the share of a cut's pixels that may be farther from the ground's colour
_TALL = 0.56  # of the scene's height, above which a thing is larger than one of two
_ALL = 0.98  # of the subject


@dataclass(frozen=True)
class Cut:
    """How a picture is pasted: at `size` against the scene, what lies around `middle`, a fraction of its width, and is
    `width` of the scene."""

    size: float
    middle: float
    width: float = WIDTHS[0]


def pair_examples(base: BaseModel, recipe: Recipe, own: Sequence[Example], cache: Path, emit: Emit) -> list[Example]:
    """`recipe.pair_count` scenes: pictures of `own` beside the things of `recipe.pair_prompts`, on either side.

    Of the pictures, those are taken for either side whose subject fits into half a scene at the largest size or the
    next, and of these those that come to stand best. The scenes are drawn by `base` with fixed seeds, or found in
    `cache`.
    """
    cuts = {one.path: best_cut(load_rgb(one.path)) for one in own}
    cell = _cell(base, recipe)
    chosen_paths = {right: best_standing(cuts, right, cell) for right in (False, True)}
    placed = [(one, right) for right, paths in chosen_paths.items() for one in own if one.path in paths]
    every = [(one, other, right) for other, (one, right) in product(recipe.pair_prompts, placed)]
    order = torch.randperm(len(every), generator=generator_for(recipe.seed, "pairs")).tolist()
    chosen = [every[order[n % len(order)]] for n in range(recipe.pair_count)]
    prompts = [beside(one.prompt, recipe, other, right, n) for n, (one, other, right) in enumerate(chosen)]
    plain = [without_trigger(prompt, recipe) for prompt in prompts]
    scenes = drawn_once(base, recipe, plain, cache, emit, "pictures of two")
    examples: list[Example] = []
    for n, ((one, _, right), scene) in enumerate(zip(chosen, scenes, strict=True)):
        picture, region = pasted(Image.open(scene), load_rgb(one.path), cuts[one.path], right, cell)
        path = scene.with_name(f"{scene.stem}-{file_id(one.path)[:12]}.png")
        write_atomic(path, lambda file, picture=picture: picture.save(file, "PNG"))
        made = Example(path, prompts[n], plain[n], region)
        examples.append(_masked_as(made, picture.size, [(one, cuts[one.path], right)], cell))
    return examples


def both_examples(
    base: BaseModel,
    first: tuple[Recipe, Sequence[Example]],
    second: tuple[Recipe, Sequence[Example]],
    cache: Path,
    emit: Emit,
) -> list[Example]:
    """As many scenes of two concepts, each given as the view of it and its pictures, on either side; all that is pasted
    is learned from.

    Pictures whose captions say the same else are put together, as two grounds in one scene would be learned too.
    """
    (recipe, own), (other, others) = first, second
    cell, cuts = _cell(base, recipe), {one.path: best_cut(load_rgb(one.path)) for one in (*own, *others)}
    every = [pair for right in (False, True) for pair in _fitting(first, second, cuts, right, cell)]
    order = torch.randperm(len(every), generator=generator_for(recipe.seed, "both", other.name)).tolist()
    chosen = [every[order[n % len(order)]] for n in range(recipe.pair_count)]
    prompts = [beside(one.prompt, recipe, other.instance_prompt, right, n) for n, (one, _, right) in enumerate(chosen)]
    plain = [without_trigger(prompt, recipe) for prompt in prompts]
    scenes = drawn_once(base, recipe, plain, cache, emit, f"pictures of {recipe.name} and {other.name}")
    examples: list[Example] = []
    for n, ((one, two, right), scene) in enumerate(zip(chosen, scenes, strict=True)):
        half, region = pasted(Image.open(scene), load_rgb(one.path), cuts[one.path], right, cell)
        picture, beyond = pasted(half, load_rgb(two.path), cuts[two.path], not right, cell)
        path = scene.with_name(f"{scene.stem}-{file_id(one.path)[:12]}-{file_id(two.path)[:12]}.png")
        write_atomic(path, lambda file, picture=picture: picture.save(file, "PNG"))
        halves = [(one, cuts[one.path], right), (two, cuts[two.path], not right)]
        examples.append(_masked_as(Example(path, prompts[n], plain[n], region, beyond), picture.size, halves, cell))
    return examples


def _masked_as(
    made: Example, size: tuple[int, int], halves: Sequence[tuple[Example, Cut, bool]], cell: float
) -> Example:
    """`made`, a scene of `size`, learned only where the masks of what was pasted into it say, if any has one."""
    masks = [load_mask(one.path) if one.masked else None for one, _, _ in halves]
    if not any(masks):
        return made
    whole = Image.new("RGB", size)
    for mask, (one, cut, right) in zip(masks, halves, strict=True):
        shown = Image.new("L", load_rgb(one.path).size, 255) if mask is None else mask
        whole, _ = pasted(whole, shown.convert("RGB"), cut, right, cell)
    write_atomic(mask_file(made.path), lambda file: whole.save(file, "PNG"))
    return replace(made, masked=True)


def _fitting(
    first: tuple[Recipe, Sequence[Example]],
    second: tuple[Recipe, Sequence[Example]],
    cuts: Mapping[Path, Cut],
    right: bool,
    cell: float,
) -> list[tuple[Example, Example, bool]]:
    """Pictures of two concepts that go together, those that come to stand best: the first one's on that side."""
    kinds = [
        [(one, one.prompt.replace(view.instance_prompt, "").strip()) for one in own] for view, own in (first, second)
    ]
    alike = [(one, two, said) for (one, said), (two, other) in product(*kinds) if said == other]
    told = [pair for pair in alike if pair[2]] or alike
    if not told:  # whatever the captions say, they do not say it of such a scene
        plain = [[replace(one, prompt=view.instance_prompt) for one in own] for view, own in (first, second)]
        told = [(one, two, "") for one, two in product(*plain)]
    sides = {
        n: misplaced(cuts[one.path], right, cell) + misplaced(cuts[two.path], not right, cell)
        for n, (one, two, _) in enumerate(told)
    }
    ordered = sorted(sides, key=lambda n: (sides[n], n))[: 2 * _AT_LEAST]
    return [(told[n][0], told[n][1], right) for n in ordered]


def _cell(base: BaseModel, recipe: Recipe) -> float:
    """The side of the UNet's coarsest cells, in shares of the picture's."""
    return base.pipe.vae_scale_factor * 2 ** (len(base.unet.config["down_block_types"]) - 1) / recipe.resolution


def best_standing(cuts: Mapping[Path, Cut], right: bool, cell: float) -> list[Path]:
    """The pictures that come to stand best on that side, a few; none much smaller than the largest, and rather none
    that is scaled down."""
    largest = max(cut.size for cut in cuts.values())
    off = {
        path: misplaced(cut, right, cell) + (_SCALED if cut.size < largest else 0)
        for path, cut in cuts.items()
        if cut.size >= SIZES[1] * largest
    }
    ordered = sorted(off, key=lambda path: (off[path], path))
    return [path for n, path in enumerate(ordered) if n < _AT_LEAST or off[path] <= off[ordered[0]] + _AS_WELL]


def best_cut(picture: Image.Image) -> Cut:
    """The largest of SIZES at which half a scene, or a little more, has room for the subject, and where it stands.

    It is taken to fit where both edges of the cut run through the ground, whose colour is the median of the outermost
    columns. Where no cut does, the smallest size and the middle.
    """
    far = subject_of(picture)  # [grain, grain]
    busy, rows = far.float().mean(0), far.any(1).nonzero()  # busy: of each column
    tall = float(rows[-1] - rows[0] + 1) / _GRAIN if len(rows) else 1.0
    for size, share in product(SIZES, WIDTHS):
        if size * tall > _TALL:
            continue
        width = round(share * _GRAIN / size)
        held = {start: float(busy[start : start + width].sum()) for start in range(_GRAIN - width + 1)}
        free = [start for start in held if max(busy[start], busy[start + width - 1]) <= _BUSY]
        whole = [start for start in free if held[start] >= _ALL * busy.sum()]
        if whole:
            return Cut(size, (whole[0] + whole[-1] + width) / 2 / _GRAIN, share)
    return Cut(SIZES[-1], 0.5)


def subject_of(picture: Image.Image) -> torch.Tensor:
    """Where the largest thing is that differs from the ground, whose colour is the median of the outermost columns:
    [grain, grain], True or False."""
    pixels = square(picture, _GRAIN)[0].add(1).mul(127.5)  # [3, grain, grain]
    ground = torch.cat([pixels[:, :, 0], pixels[:, :, -1]], 1).median(1).values[:, None, None]
    far = (pixels - ground).abs().amax(0) > _NEAR
    number = torch.where(far, torch.arange(1.0, far.numel() + 1).view_as(far), 0)
    grown = number
    while True:  # each thing takes the largest of its numbers
        grown, before = torch.where(far, max_pool2d(grown[None], 5, 1, 2)[0], 0), grown
        if torch.equal(grown, before):
            break
    found, count = grown[far].unique(return_counts=True)
    return grown == found[count.argmax()] if len(found) else far


def moved(cut: Cut, right: bool, cell: float) -> float:
    """By how much of the scene's width the middle of what is pasted goes sideways: whole steps of `cell`, to where it
    stands best among things of two, no more of it than a little beyond the scene's edge."""
    middle, goal = 0.5 + cut.size * (cut.middle - 0.5), 1 - _STANDS if right else _STANDS
    steps = range(-round(1 / cell), round(1 / cell) + 1)
    edge = cut.width / 2 - _BEYOND
    kept = [step * cell for step in steps if edge <= middle + step * cell <= 1 - edge]
    return min(kept, key=lambda by: abs(middle + by - goal))


def misplaced(cut: Cut, right: bool, cell: float) -> float:
    """How far from its best place it then is."""
    middle = 0.5 + cut.size * (cut.middle - 0.5) + moved(cut, right, cell)
    return abs(middle - (1 - _STANDS if right else _STANDS))


def pasted(
    scene: Image.Image, picture: Image.Image, cut: Cut, right: bool, cell: float
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """`scene` with `picture` in its left or right half, and the region that it covers, in fractions.

    The picture is moved sideways by whole cells, the UNet's coarsest, each `cell` of the width, so that the network
    sees what it showed before; what `cut` takes and all beyond, to the scene's edge, covers what the base drew there.
    """
    width, side = scene.width, round(cut.size * scene.width)
    small = square(picture, side)[0].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    top = (width - side) // 2
    left = top + round(moved(cut, right, cell) * width)  # where the picture's own left edge comes to lie
    inner = round(left + cut.middle * side + (-0.5 if right else 0.5) * cut.width * width)
    edges = (max(inner, left), min(width, left + side)) if right else (max(0, left), min(inner, left + side))
    whole = scene.convert("RGB")
    whole.paste(Image.fromarray(small).crop((edges[0] - left, 0, edges[1] - left, side)), (edges[0], top))
    return whole, (edges[0] / width, top / width, edges[1] / width, (top + side) / width)
