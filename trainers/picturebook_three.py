"""Teaches text towers that know captions of one and two things those of three, and little else changes.

Of one and two things they are held to what they say. The last of three is to be what it is as the second of two,
moved as far again as a second is from a first: so what a UNet and a concept's adapter know of a thing holds there too.
"""

import random
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from studio.picturebook import CLASSES, describe, random_subject
from studio.trainers.picturebook_text import (
    LENGTH,
    Heads,
    Tower,
    class_ids,
    random_captions,
    reading_loss,
    states_of,
    teach,
    tokenize,
)  # fmt: skip

_MIDDLE = re.compile(rf", an? (?:\S+ )*?(?:{'|'.join(CLASSES)})(?: in the middle)?(?= and )")


def without_middle(text: str) -> str:
    """A caption of three things as one of the first and the last; others as they are."""
    return _MIDDLE.sub("", text, count=1)


@dataclass(frozen=True)
class Memory:
    """A tower as it was, and the step [C] from a class word's state as the first of two to that as the second."""

    tower: Tower
    step: Tensor

    @classmethod
    def of(cls, tower: Tower, tokenizer: CLIPTokenizer) -> "Memory":
        """Of `tower` as it is now."""
        rng, old = random.Random("second"), deepcopy(tower).eval().requires_grad_(False)
        one, other = ([describe(random_subject(rng), rng, 0.1, 0.3) for _ in range(256)] for _ in range(2))

        def at_classes(lefts: list[str], rights: list[str]) -> Tensor:  # [256, 2, C]
            texts = [f"{left} on the left and {right} on the right" for left, right in zip(lefts, rights, strict=True)]
            ids = tokenize(tokenizer, texts)
            return states_of(old, ids)[0][torch.isin(ids, class_ids(tokenizer))].unflatten(0, (-1, 2))

        return cls(old, (at_classes(other, one)[:, 1] - at_classes(one, other)[:, 0]).mean(0))

    def distance(self, output: Any, captions: list[str], tokenizer: CLIPTokenizer) -> Tensor:
        """Mean squared distance of a tower's output for `captions` from what it should be.

        Of three the end is free, since it has more to say, and so is the pooled embedding.
        """
        ids = tokenize(tokenizer, captions)
        own, pooled = states_of(self.tower, ids)
        states, held = self._wanted(own, ids, captions, tokenizer)
        away = (output.hidden_states[-2] - states).square().mean(2)[held].mean()
        if pooled is None:
            return away
        return away + (output.text_embeds - pooled)[held[:, -1]].square().mean()

    def _wanted(self, own: Tensor, ids: Tensor, captions: list[str], tokenizer: CLIPTokenizer) -> tuple[Tensor, Tensor]:
        """(states [B, LENGTH, C], whether each is held to [B, LENGTH]), from the tower's `own` of the captions."""
        short_ids = tokenize(tokenizer, [without_middle(text) for text in captions])
        end: Any = tokenizer.eos_token_id  # declared as anything
        ends = [one.ne(end).sum(1, keepdim=True) for one in (ids, short_ids)]
        cut = ends[0] - ends[1]  # [B, 1]: tokens of the middle thing
        begins = torch.tensor([[_length(tokenizer, text)] for text in captions]) + cut
        place = torch.arange(LENGTH)[None]
        last = (torch.isin(ids, class_ids(tokenizer)) * place).amax(1, keepdim=True)
        tail = (cut > 0) & (place >= begins)
        as_second, _ = states_of(self.tower, short_ids)
        as_second = as_second.gather(1, (place - cut).clamp(min=0)[..., None].expand_as(as_second))
        moved = as_second + self.step * (place <= last)[..., None]
        states = torch.where(tail[..., None], moved, own)
        return states, (cut == 0) | (place < ends[0])


def _length(tokenizer: CLIPTokenizer, text: str) -> int:
    """Tokens before the middle of three things, the beginning's among them."""
    found = _MIDDLE.search(text)
    return len(tokenizer(text[: found.start()]).input_ids) - 1 if found else 0


def teach_three(
    tokenizer: CLIPTokenizer,
    towers: tuple[Tower, Tower],
    steps: int,
    batch: int,
    seed: int,
    log: Callable[[int, float, str], None],
) -> None:
    """Train `towers` in place for `steps` on fresh captions, half of them of three things."""
    torch.manual_seed(seed)
    rng = random.Random(f"three {seed}")
    memories, kinds = [Memory.of(tower, tokenizer) for tower in towers], class_ids(tokenizer)
    heads = [Heads(memory.step.numel(), len(tokenizer)) for memory in memories]

    def lesson() -> Iterator[tuple[Tensor, Tensor, float]]:
        captions = random_captions(rng, batch, threes=0.5)
        ids = tokenize(tokenizer, captions)
        for tower, head, memory in zip(towers, heads, memories, strict=True):
            output = tower(input_ids=ids, output_hidden_states=True)
            read, right = reading_loss(output, head, ids, captions, kinds)
            yield memory.distance(output, captions, tokenizer), read, right

    teach(towers, heads, steps, lesson, log)
