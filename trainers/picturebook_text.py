"""The picturebook's tokenizer and its two CLIP text towers.

The towers learn, from captions alone, to state at each class word the attributes that were said of it and at
the end of the text the whole scene from left to right; so attributes are bound to things before a UNet sees them.
Identifiers are part of captions and of no target: they get states of their own, and no meaning.
"""

import json
import random
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from studio.picturebook import (
    BACKGROUND_WORDS,
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    IDENTIFIERS,
    PATTERNS,
    STYLE_WORDS,
    STYLES,
    caption,
    random_scene,
)  # fmt: skip

LENGTH = 48
HELD = 20.0  # the weight of what taught towers are held to, beside what is read
UNSAID = 0
SIDES = ("left", "right", "middle")
ATTRIBUTES = {"kind": CLASSES, "colour": COLOURS, "second": COLOURS, "pattern": PATTERNS}


def random_captions(rng: random.Random, count: int, held_out: bool | None = False, threes: float = 0.2) -> list[str]:
    """Captions of random scenes, the share `threes` of them of three things."""
    return [
        caption(random_scene(rng, held_out, subjects=3 if rng.random() < threes else None), rng) for _ in range(count)
    ]


def train_tokenizer(seed: int) -> CLIPTokenizer:
    """A byte-level BPE in which each word of the world and each identifier is one token; ValueError otherwise."""
    world = random_captions(random.Random(f"tokens {seed}"), 20_000, held_out=None)
    letters = [f"{a} a{a}" for a in string.ascii_lowercase + string.digits + string.punctuation]
    untrained = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, model_max_length=LENGTH)
    trained = untrained.train_new_from_iterator([*world, *letters, *IDENTIFIERS * 300], 1024, show_progress=False)
    tokenizer = with_every_ending(trained)
    words = {word for text in world for word in text.replace(",", " ").split()}
    if broken := sorted(word for word in words if len(tokenizer(word).input_ids) != 3):
        raise ValueError(f"these words are not one token each: {broken}")
    return tokenizer


def with_every_ending(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """The same tokenizer with a token for each byte at the end of a word: an unknown one would end the text."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    endings = [f"{byte}</w>" for byte in sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*model["vocab"], *endings]))}
    merges: Any = [tuple(merge) for merge in model["merges"]]  # declared as text, wanted as pairs
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


@dataclass(frozen=True)
class Reading:
    """What a caption says: its subjects in the order of the words, whether that is right to left, and the rest.

    An attribute's value is its index + 1; 0 stands for unsaid.
    """

    spoken: tuple[dict[str, int], ...]
    reversed: bool
    background: int
    style: int

    @property
    def left_to_right(self) -> tuple[dict[str, int], ...]:
        """The subjects as they stand in the picture."""
        return self.spoken[::-1] if self.reversed else self.spoken

    @property
    def standing(self) -> dict[str, dict[str, int]]:
        """The subjects by their side; one alone counts as left."""
        sides = ("left", "middle", "right") if len(self.spoken) == 3 else ("left", "right")
        return dict(zip(sides, self.left_to_right, strict=False))


def read_caption(text: str) -> Reading:
    """What `text`, a caption of this world, says; each class word ends the phrase of its subject."""
    subjects: list[dict[str, int]] = []
    said: dict[str, int] = {}
    for word in text.replace(",", " ").split():
        if word in COLOURS:
            said["second" if "colour" in said else "colour"] = COLOURS.index(word) + 1
        elif word in PATTERNS:
            said["pattern"] = PATTERNS.index(word) + 1
        elif word in CLASSES:
            subjects.append({"kind": CLASSES.index(word) + 1, **said})
            said = {}
    turned = "to the right of" in text or 0 <= text.find("on the right") < text.find("on the left")
    background = _said(text, [BACKGROUND_WORDS[name] for name in BACKGROUNDS])
    return Reading(tuple(subjects), turned, background, _said(text, [STYLE_WORDS[name] for name in STYLES]))


def _said(text: str, wordings: list[tuple[str, ...]]) -> int:
    found = [index + 1 for index, phrases in enumerate(wordings) if any(phrase in text for phrase in phrases)]
    return found[0] if found else UNSAID


Tower = CLIPTextModel | CLIPTextModelWithProjection


def build_towers(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Untrained towers, 96 and 128 wide, three layers each; the second has the pooled embedding."""

    special: Any = tokenizer  # its ids are declared as anything

    def config(width: int, act: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, projection_dim=width,
            num_hidden_layers=3, num_attention_heads=width // 32, max_position_embeddings=LENGTH, hidden_act=act,
            bos_token_id=special.bos_token_id, eos_token_id=special.eos_token_id,
            pad_token_id=special.pad_token_id,
        )  # fmt: skip

    return CLIPTextModel(config(96, "quick_gelu")), CLIPTextModelWithProjection(config(128, "gelu"))


@torch.no_grad()
def states_of(tower: Tower, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """(states [B, LENGTH, C] before the last layer, which SDXL reads; pooled embedding, where the tower has one)."""
    output = tower(input_ids=ids, output_hidden_states=True)
    return output.hidden_states[-2], getattr(output, "text_embeds", None)


class Heads(nn.Module):
    """Linear readings of a state: the subject at its class word, the scene at the end, the token anywhere."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        subject = {name: len(values) + 1 for name, values in ATTRIBUTES.items()}
        scene = {f"{side}_{name}": size for side in SIDES for name, size in subject.items()}
        scene |= {"background": len(BACKGROUNDS) + 1, "style": len(STYLES) + 1}
        self.subject = nn.ModuleDict({name: nn.Linear(width, size) for name, size in subject.items()})
        self.scene = nn.ModuleDict({name: nn.Linear(width, size) for name, size in scene.items()})
        self.token = nn.Linear(width, vocabulary)


def targets(readings: list[Reading]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(subject, scene): per attribute a row for each class word, and a row for each caption."""
    subject = {n: torch.tensor([s.get(n, UNSAID) for r in readings for s in r.spoken]) for n in ATTRIBUTES}
    scene: dict[str, Tensor] = {}
    for side in SIDES:
        standing = [r.standing.get(side, {}) for r in readings]
        scene |= {f"{side}_{n}": torch.tensor([s.get(n, UNSAID) for s in standing]) for n in ATTRIBUTES}
    scene["background"] = torch.tensor([r.background for r in readings])
    scene["style"] = torch.tensor([r.style for r in readings])
    return subject, scene


def _read(heads: nn.ModuleDict, states: Tensor, wanted: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(mean loss, share of rows with every head right)."""
    logits = {name: heads[name](states) for name in wanted}
    loss = torch.stack([F.cross_entropy(logits[name], wanted[name]) for name in wanted]).mean()
    right = torch.stack([logits[name].argmax(-1) == wanted[name] for name in wanted]).all(0).float().mean()
    return loss, right


def reading_loss(output: Any, heads: Heads, ids: Tensor, captions: list[str], kinds: Tensor) -> tuple[Tensor, float]:
    """(loss, share of captions whose whole scene is read) of one tower's output for `ids` [B, LENGTH].

    `kinds` are the ids of the class words. SDXL reads the states before the last layer, and the pooled embedding.
    """
    states = output.hidden_states[-2]  # [B, LENGTH, C]
    subject, scene = targets([read_caption(text) for text in captions])
    pooled = getattr(output, "text_embeds", None)
    losses = [_read(heads.subject, states[torch.isin(ids, kinds)], subject)[0]]
    scene_loss, right = _read(heads.scene, states[:, -1], scene)
    losses += [scene_loss, F.cross_entropy(heads.token(states).flatten(0, 1), ids.flatten())]
    if pooled is not None:
        losses.append(_read(heads.scene, pooled, scene)[0])
    return torch.stack(losses).sum(), float(right)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [B, LENGTH], padded as diffusers does."""
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def class_ids(tokenizer: CLIPTokenizer) -> Tensor:
    """The token of each class word."""
    return torch.tensor([tokenizer(kind).input_ids[1] for kind in CLASSES])


@torch.no_grad()
def unit_scale(tower: Tower, ids: Tensor) -> float:
    """Rescale `tower` so that the states before its last layer, and the pooled embedding, have deviation 1 on `ids`.

    The residual stream shrinks as a whole, and the norms' epsilon with it, so that nothing else changes; returns the
    factor of the states.
    Linear layers of a UNet expect inputs of this size: at seven times it, their keys and values jump with every step.
    """
    output = tower(input_ids=ids, output_hidden_states=True)
    factor = 1.0 / float(output.hidden_states[-2].std())
    for name, parameter in tower.named_parameters():
        if "embedding" in name or "out_proj" in name or "fc2" in name:
            parameter *= factor
    tower.config.layer_norm_eps = float(tower.config.layer_norm_eps or 1e-5) * factor**2
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = float(tower.config.layer_norm_eps)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(tower, CLIPTextModelWithProjection):
        tower.text_projection.weight /= output.text_embeds.std()
    return factor


def train_towers(
    tokenizer: CLIPTokenizer, steps: int, batch: int, seed: int, log: Callable[[int, float, str], None]
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Train both towers on fresh captions for `steps`."""
    torch.manual_seed(seed)
    rng = random.Random(f"text {seed}")
    towers = build_towers(tokenizer)
    heads = [Heads(tower.config.hidden_size, len(tokenizer)) for tower in towers]
    parameters = [p for module in (*towers, *heads) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    kinds = class_ids(tokenizer)
    for step in range(steps):
        captions = random_captions(rng, batch)
        ids = tokenize(tokenizer, captions)
        outputs = [tower(input_ids=ids, output_hidden_states=True) for tower in towers]
        readings = [reading_loss(*each, ids, captions, kinds) for each in zip(outputs, heads, strict=True)]
        loss = readings[0][0] + readings[1][0]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        log(step + 1, loss.item(), " ".join(f"{right:.2f}" for _, right in readings))
    for tower in towers:
        unit_scale(tower.eval().requires_grad_(False), tokenize(tokenizer, random_captions(rng, 256)))
    return towers


def teach(
    towers: tuple[Tower, Tower],
    heads: Sequence[nn.Module],
    steps: int,
    lesson: Callable[[], Iterable[tuple[Tensor, Tensor, float]]],
    log: Callable[[int, float, str], None],
) -> None:
    """Train `towers` that know something already, and `heads` that read them, in place for `steps`.

    A `lesson` returns for each tower its distance from what it is held to, the loss of what is read, and the share of
    it that is read right.
    """
    groups = [[p.requires_grad_(True) for module in part for p in module.parameters()] for part in (towers, heads)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [5e-4, 3e-3], steps, pct_start=0.15)
    for step in range(steps):
        learned = list(lesson())
        loss = torch.stack([HELD * away + read for away, read, _ in learned]).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(groups[0], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        log(step + 1, loss.item(), "; ".join(f"{right:.2f} {away.item():.4f}" for away, _, right in learned))
    for parameter in groups[0]:
        parameter.requires_grad_(False)
