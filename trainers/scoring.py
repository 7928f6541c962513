"""How well a training does by the pictures it draws: are they of the concept, do they show what their prompts say.

A scorer is anything with a name that reads pictures. On the embedded base it is judge A; on others there is none unless
`train_concept` is given one, such as any CLIP.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from studio.bases import EMBEDDED
from studio.concepts import whole_word
from studio.encoders import Clip
from studio.images import find_pictures, load_rgb
from studio.judge import Gallery, Judge, Reading, subject_of
from studio.metrics import clip_score, likeness
from studio.picturebook import BACKGROUND_WORDS, CLASSES, STYLE_WORDS, distractors
from studio.trainers.recipe import Recipe
from studio.trainers.sampling import batch_size, draw
from studio.trainers.training import Training
from studio.trainers.zero_snr import drawing_as_trained

PER_PROMPT = 2  # pictures, each with a seed of its own
CLEAR = 0.05  # the margin of a picture that counts .73


@dataclass(frozen=True)
class Fidelity:
    """How much pictures are like the concept's own, and how much of what their prompts say they show: means from 0 to
    1, of all pictures."""

    concept: float
    prompt: float

    @property
    def both(self) -> float:
        """What steps are compared by: the product, so that neither makes up for the other."""
        return self.concept * self.prompt


class Scorer(Protocol):
    """What reads pictures of `prompts`, one each, beside `references`, the concept's own."""

    name: str

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Image.Image]
    ) -> Fidelity:
        """What it says of all of them."""
        ...


class JudgeA:
    """The judge inside the product: how much nearer pictures are to the subject that it reads in the references than to
    those that differ from it in one thing, which tells more than any likeness (docs/evaluation.md), as a logistic curve
    of that margin; and the share of the backgrounds and styles named in prompts that it reads in their pictures."""

    name = "judge A"

    def __init__(self, class_word: str) -> None:
        self._class_word = class_word

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Image.Image]
    ) -> Fidelity:
        """Both means."""
        judge = Judge.load("A")
        subject = subject_of(judge, references, self._class_word)
        readings, embeddings = judge.look(pictures)
        told = [right for prompt, reading in zip(prompts, readings, strict=True) for right in obeyed(prompt, reading)]
        margins = Gallery(judge, [subject, *distractors(subject)]).identity(embeddings, subject)[1]
        concept = float((margins / CLEAR).sigmoid().mean())
        return Fidelity(concept, sum(told) / len(told) if told else 1.0)


class ByClip:
    """Any CLIP: the mean cosine of its picture vectors to those of the concept's own pictures (CLIP-I), and to the
    prompts as anybody would say them, without the triggers (CLIP-T); negative ones as 0."""

    def __init__(self, clip: Clip, *triggers: str) -> None:
        self.name = f"the CLIP {clip.name}"
        self._clip, self._triggers = clip, "|".join(map(whole_word, triggers))

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Image.Image]
    ) -> Fidelity:
        """Both means."""
        vectors = self._clip.images(pictures)
        said = [re.sub(rf"(?:{self._triggers})\s+", "", prompt) for prompt in prompts]
        fits = clip_score(vectors, self._clip.texts(said)) / 100
        return Fidelity(float(likeness(vectors, self._clip.images(references)).clamp(min=0).mean()), float(fits.mean()))


def obeyed(prompt: str, reading: Reading) -> list[bool]:
    """For the background and the style, where `prompt` names one: whether `reading` is that."""
    worlds = {"background": BACKGROUND_WORDS, "style": STYLE_WORDS}
    return [
        getattr(reading, field) == value
        for field, values in worlds.items()
        for value, wordings in values.items()
        if any(words in prompt for words in wordings)
    ]


def scorers_for(recipe: Recipe, given: Scorer | None = None) -> list[Scorer]:
    """What reads pictures of each concept of the recipe: what is `given`, or what the studio has for all of them; else
    none."""
    if given is not None:
        return [given] * len(recipe.views)
    words = [view.class_word for view in recipe.views]
    known = recipe.base == EMBEDDED and all(word in CLASSES for word in words)
    return [JudgeA(word) for word in words] if known else []


def scored(training: Training, scorers: Sequence[Scorer]) -> tuple[Fidelity, dict[str, list[Image.Image]]]:
    """The pictures of each concept's `score_prompts` as the training stands, by prompt, and what its scorer says of
    them, the mean over concepts; their seeds are always the same, and nothing random of the training is touched."""
    rows: dict[str, list[Image.Image]] = {}
    said: list[Fidelity] = []
    for view, scorer in zip(training.recipe.views, scorers, strict=True):
        if view.score_prompts:
            fidelity, drawn = _scored(training, view, scorer)
            said.append(fidelity)
            rows |= drawn
    concept, prompt = (sum(getattr(one, part) for one in said) / len(said) for part in ("concept", "prompt"))
    return Fidelity(concept, prompt), rows


def _scored(training: Training, recipe: Recipe, scorer: Scorer) -> tuple[Fidelity, dict[str, list[Image.Image]]]:
    base = training.base
    base.unet.eval()
    prompts = [prompt for prompt in recipe.score_prompts for _ in range(PER_PROMPT)]
    seeds = [recipe.seed + n for n in range(len(prompts))]
    pictures: list[Image.Image] = []
    at_once = batch_size(recipe.resolution)
    with drawing_as_trained(base, recipe):
        for start in range(0, len(prompts), at_once):
            part = slice(start, start + at_once)
            size, steps, guidance = recipe.resolution, recipe.sample_steps, recipe.guidance
            pictures += draw(base, prompts[part], seeds[part], size, steps, guidance)
    references = [load_rgb(one.path) for one in find_pictures(recipe.pictures)]
    rows = {prompt: pictures[n * PER_PROMPT : (n + 1) * PER_PROMPT] for n, prompt in enumerate(recipe.score_prompts)}
    return scorer(pictures, prompts, references), rows
