"""Teaches text towers that know captions of bare things what these wear or hold, and nothing else changes.

Every word but those of what is worn is held to what it says in the same caption without them; these say what it is, in
which colour, and who wears it. So what a UNet knows of captions holds there too.
"""

import random
import re
from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from studio.picturebook import CLASSES, COLOURS, TRIMMINGS, caption, random_scene, trimmed
from studio.trainers.picturebook_text import LENGTH, Tower, read_caption, states_of, teach, tokenize

_WORN = re.compile(rf" with (?:an? )?(?:(?P<accent>{'|'.join(COLOURS)}) )?(?P<what>{'|'.join(TRIMMINGS)})(?=\W|$)")
_SIDES = ("left", "middle", "right")
_READ = {"what": len(TRIMMINGS), "accent": len(COLOURS) + 1, "kind": len(CLASSES), "side": len(_SIDES)}


def without_worn(text: str) -> str:
    """A caption as if nothing were worn."""
    return _WORN.sub("", text)


def said_of_worn(text: str) -> list[dict[str, int]]:
    """What, in which colour (index + 1, 0 unsaid), by which class and on which side is worn, in the words' order."""
    reading, found = read_caption(without_worn(text)), []
    sides = {id(subject): _SIDES.index(side) for side, subject in reading.standing.items()}
    for match in _WORN.finditer(text):
        wearer = reading.spoken[len(read_caption(without_worn(text[: match.start()])).spoken) - 1]
        accent = COLOURS.index(match["accent"]) + 1 if match["accent"] else 0
        what = {"what": TRIMMINGS.index(match["what"]), "accent": accent}
        found.append(what | {"kind": wearer["kind"] - 1, "side": sides[id(wearer)]})
    return found


def places(tokenizer: CLIPTokenizer, text: str) -> tuple[list[int], list[int]]:
    """(the token that ends each phrase of what is worn, the tokens of no such phrase in their order)."""
    spans = [[_tokens_before(tokenizer, text[:at]) for at in match.span()] for match in _WORN.finditer(text)]
    inside = {place for first, end in spans for place in range(first, end)}
    return [end - 1 for _, end in spans], [place for place in range(LENGTH) if place not in inside]


def _tokens_before(tokenizer: CLIPTokenizer, text: str) -> int:
    """Tokens of `text`, the beginning's among them."""
    return len(tokenizer(text).input_ids) - 1


def teach_worn(
    tokenizer: CLIPTokenizer,
    towers: tuple[Tower, Tower],
    steps: int,
    batch: int,
    seed: int,
    log: Callable[[int, float, str], None],
) -> None:
    """Train `towers` in place for `steps` on fresh captions of one and two things, half of these wearing something."""
    torch.manual_seed(seed)
    rng = random.Random(f"worn {seed}")
    held = [deepcopy(tower).eval().requires_grad_(False) for tower in towers]
    heads = [reading_heads(tower.config.hidden_size) for tower in towers]

    def lesson() -> Iterator[tuple[Tensor, Tensor, float]]:
        captions = _captions(tokenizer, rng, batch)
        for tower, head, memory in zip(towers, heads, held, strict=True):
            yield losses_of(tower, memory, head, tokenizer, captions)

    teach(towers, heads, steps, lesson, log)


def losses_of(
    tower: Tower, memory: Tower, heads: nn.ModuleDict, tokenizer: CLIPTokenizer, captions: list[str]
) -> tuple[Tensor, Tensor, float]:
    """(mean squared distance of what is held from what `memory` says, loss of what `heads` read at what is worn, share
    of it that is read right)."""
    output = tower(input_ids=tokenize(tokenizer, captions), output_hidden_states=True)
    states = output.hidden_states[-2]  # [B, LENGTH, C]
    bare = tokenize(tokenizer, [without_worn(text) for text in captions])
    was, pooled_was = states_of(memory, bare)
    found = [places(tokenizer, text) for text in captions]
    aways = [(states[n, rest] - was[n, : len(rest)]).square().mean() for n, (_, rest) in enumerate(found)]
    away = torch.stack(aways).mean()
    if pooled_was is not None:
        away = away + (output.text_embeds - pooled_was).square().mean()
    at = torch.cat([states[n, ends] for n, (ends, _) in enumerate(found)])  # [W, C]
    said = [one for text in captions for one in said_of_worn(text)]
    wanted = {name: torch.tensor([one[name] for one in said]) for name in _READ}
    logits = {name: heads[name](at) for name in _READ}
    read = torch.stack([F.cross_entropy(logits[name], wanted[name]) for name in _READ]).mean()
    right = torch.stack([logits[name].argmax(-1) == wanted[name] for name in _READ]).all(0).float().mean()
    return away, read, float(right)


def reading_heads(width: int) -> nn.ModuleDict:
    """Linear readings of a state of `width`: what is worn, in which colour, by which class and on which side."""
    return nn.ModuleDict({name: nn.Linear(width, size) for name, size in _READ.items()})


def _captions(tokenizer: CLIPTokenizer, rng: random.Random, count: int) -> list[str]:
    """Captions of one and two things that are no longer than a tower reads; the first wears something."""
    found: list[str] = []
    while len(found) < count:
        text = caption(trimmed(random_scene(rng), rng, share=0.5), rng)
        if len(tokenizer(text).input_ids) <= LENGTH and (found or _WORN.search(text)):
            found.append(text)
    return found
