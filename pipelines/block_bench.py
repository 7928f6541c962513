"""What each attention block of the base carries: its text alone is swapped, and a judge sees which attributes follow.

The ground truth for methods that train single blocks (B-LoRA, arXiv:2403.14572, section 4.1 does the same by eye).
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from PIL.Image import Image
from torch import Tensor

from studio.events import Emit, Phase, Step
from studio.judge import Judge, Reading
from studio.models import BaseModel
from studio.picturebook import Scene, caption, scenes

FIELDS = ("kind", "colour", "pattern", "background", "style")
POOLED = "pooled embedding"
SHOWN = 16  # pictures a row that are handed back


def attention_blocks(base: BaseModel) -> list[str]:
    """Paths of the UNet's transformers, in the order of the forward pass."""
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    paths = [path for path, module in base.unet.named_modules() if isinstance(module, Transformer2DModel)]
    return sorted(paths, key=lambda path: (order[path.split(".")[0]], path))


@contextmanager
def swapped_text(base: BaseModel, paths: Sequence[str], states: Tensor) -> Iterator[None]:
    """The blocks `paths` read `states` [B, N, C] in the guided half of a batch of [unguided, guided]."""

    def replace(
        module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        usual = kwargs["encoder_hidden_states"]
        return args, {**kwargs, "encoder_hidden_states": torch.cat([usual[: len(states)], states])}

    hooks = [base.unet.get_submodule(path).register_forward_pre_hook(replace, with_kwargs=True) for path in paths]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _differing_pairs(seed: int, count: int) -> list[tuple[Scene, Scene]]:
    """Pairs of scenes that differ in every field, patterns included."""
    pairs: list[tuple[Scene, Scene]] = []
    source = iter(scenes(seed, 100 * count, held_out=None, subjects=1))
    while len(pairs) < count:
        a, b = next(source), next(source)
        differ = all(getattr(a.subjects[0], f) != getattr(b.subjects[0], f) for f in ("kind", "colour", "pattern"))
        if differ and a.background != b.background and a.style != b.style:
            pairs.append((a, b))
    return pairs


def _attribute(scene: Scene, field: str) -> str:
    return getattr(scene if field in ("background", "style") else scene.subjects[0], field)


def _followed(readings: Sequence[Reading], pairs: Sequence[tuple[Scene, Scene]]) -> dict[str, float]:
    return {
        field: sum(getattr(r, field) == _attribute(b, field) for r, (_, b) in zip(readings, pairs, strict=True))
        / len(pairs)
        for field in FIELDS
    }


def _draw(base: BaseModel, states: Tensor, pooled: Tensor, seed: int) -> list[Image]:
    width, height = base.native_size
    return base.pipe(
        prompt_embeds=states, pooled_prompt_embeds=pooled, width=width, height=height, num_inference_steps=15,
        negative_prompt_embeds=torch.zeros_like(states), negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        guidance_scale=4.0, generator=[torch.Generator("cpu").manual_seed(seed + i) for i in range(len(states))],
    ).images  # fmt: skip


def bench_blocks(
    base: BaseModel, judge: Judge, count: int, seed: int, emit: Emit
) -> tuple[dict[str, dict[str, float]], dict[str, list[Image]]]:
    """(table, the first pictures of its rows): for each block, and for groups of them, the share of pictures whose
    field follows the text given to it alone.

    The row "none" is chance: how often an unchanged picture shows the other text's value.
    """
    pairs = _differing_pairs(seed, count)
    texts = [[caption(pair[i], random.Random(f"block {n}"), 0, 0) for n, pair in enumerate(pairs)] for i in (0, 1)]
    own, other = (base.encode(t) for t in texts)
    assert own.pooled is not None
    assert other.pooled is not None
    blocks = attention_blocks(base)
    rows: dict[str, list[str]] = {"none": [], POOLED: [], **{block: [block] for block in blocks}}
    rows |= {
        f"all of {part}": [b for b in blocks if b.startswith(part)]
        for part in ("down_blocks", "up_blocks.0", "up_blocks.1")
    }
    emit(Phase("swapping prompts by block", len(rows)))
    table: dict[str, dict[str, float]] = {}
    shown: dict[str, list[Image]] = {}
    for name, paths in rows.items():
        readings: list[Reading] = []
        for start in range(0, count, 30):
            part = slice(start, start + 30)
            pooled = other.pooled if name == POOLED else own.pooled
            with swapped_text(base, paths, other.embeds[part]):
                pictures = _draw(base, own.embeds[part], pooled[part], seed + start)
            readings += judge.read(pictures)
            shown.setdefault(name, pictures[:SHOWN])
        table[name] = _followed(readings, pairs)
        emit(Step(len(table), len(rows)))
    return table, shown
