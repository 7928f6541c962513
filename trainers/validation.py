"""When to stop: the loss at noise and timesteps that are always the same, and what a scorer says of pictures.

The loss of training steps says little of that: its noise is new each time, and its pictures are those that are learned
by heart.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from studio.errors import UsageError
from studio.events import Emit, Notice, Validation
from studio.home import write_atomic
from studio.images import Picture
from studio.pipelines.contact_sheet import comparison_sheet
from studio.trainers.data import chosen_from, generator_for
from studio.trainers.recipe import Recipe
from studio.trainers.scoring import PER_PROMPT, Fidelity, Scorer, scored
from studio.trainers.training import Drawn, Training

FILE, STEPS = "validation.json", "steps"
TIMES = 8  # timesteps at which each picture is asked about, in the middles of as many equal parts of the schedule


@dataclass(frozen=True)
class Measured:
    """The validation loss after `step` steps, and where there is a scorer what it says; 0 is the untrained base."""

    step: int
    loss: float
    fidelity: Fidelity | None = None


def divided(pictures: list[Picture], recipe: Recipe) -> tuple[list[Picture], list[Picture]]:
    """What is trained on, and the `recipe.held_out` that are not, by the recipe's seed.

    Raises UsageError where nothing would be left to train on.
    """
    if recipe.held_out and recipe.held_out >= len(pictures):
        raise UsageError(
            f"held_out is {recipe.held_out} of {len(pictures)} pictures: nothing is left to learn from.",
            "Hold out fewer, or give more pictures.",
        )
    held = set(chosen_from(0, recipe.held_out, len(pictures), recipe.seed, "held out"))
    return [one for n, one in enumerate(pictures) if n not in held], [pictures[n] for n in sorted(held)]


def fixed_samples(training: Training) -> list[Drawn]:
    """Every picture that is held out, or else every one that is trained on, at TIMES timesteps, by size."""
    samples = []
    for number, bucket in enumerate((training.held or training.instances).buckets):
        rows = [row for row in range(len(bucket)) for _ in range(TIMES)]
        batch = bucket.whole.rows(rows)
        generator = generator_for(training.recipe.seed, "validation", number)
        noise = torch.randn(batch.latents.shape, generator=generator)
        times = (torch.arange(TIMES) + 0.5) * (training.schedule.total / TIMES)
        samples.append(Drawn(batch, noise, times.long().repeat(len(bucket)), tuple(range(len(rows)))))
    return samples


@torch.no_grad()
def validation_loss(training: Training, samples: list[Drawn]) -> float:
    """The mean squared error over `samples` where they are learned from; nothing random is touched."""
    training.base.unet.eval()
    total, weight, at_once = 0.0, 0.0, 2 * training.recipe.batch_size
    for one in samples:
        for start in range(0, len(one.noise), at_once):
            part = one.part(list(range(len(one.noise)))[start : start + at_once], training.base.device)
            batch = part.batch
            noisy = training.schedule.noisy(batch.latents, part.noise, part.timesteps)
            target = training.schedule.target(batch.latents, part.noise, part.timesteps)
            embeds, pooled = training.text(batch, len(part.noise))
            prediction = training.predict(noisy, part.timesteps, batch, embeds, pooled)
            errors = (prediction.float() - target).square().mean(1, keepdim=True)  # [B, 1, h, w]
            total += float((errors * batch.own).sum())
            weight += float(batch.own.sum())
    return total / weight


def best(measured: list[Measured]) -> Measured:
    """The trained step of the best pictures, or where no scorer saw them all of the lowest loss; the earliest of
    equals."""
    trained = [one for one in measured if one.step]
    scores = [one.fidelity.both for one in trained if one.fidelity]
    if len(scores) == len(trained):
        return trained[scores.index(max(scores))]
    return min(trained, key=lambda one: (one.loss, one.step))


class Validator:
    """What measures a training now and then, and keeps the adapter of each step that was measured, in `folder`; with a
    scorer a concept also what those say of its `score_prompts`, and the pictures.

    An interrupted training goes on with what it measured before; a new one begins with the base.
    """

    def __init__(self, training: Training, folder: Path, emit: Emit, scorers: Sequence[Scorer] = ()) -> None:
        self._training, self._folder, self._emit = training, folder, emit
        self._prompts = [prompt for view in training.recipe.views for prompt in view.score_prompts]
        self._scorers = list(scorers) if self._prompts else []
        self._measured: list[Measured] = []
        if training.recipe.validate_every:
            self._samples = fixed_samples(training)
            self._measured = read_measured(folder, training.step)

    def measure(self) -> None:
        """Measure the training as it stands, where that is due and was not done before an interruption; at its last
        step, say which step is recommended."""
        training, step, recipe = self._training, self._training.step, self._training.recipe
        if not training.due(recipe.validate_every) or any(one.step == step for one in self._measured):
            return
        with training.averaged():
            loss = validation_loss(training, self._samples)
            fidelity = self._score() if self._scorers else None
            if step:
                words = {} if training.word is None else training.word.rows()
                training.tuner.write(self._file("safetensors"), {"studio.step": str(step)}, words)
        self._measured.append(Measured(step, loss, fidelity))
        told = (fidelity.concept, fidelity.prompt) if fidelity else None
        self._emit(Validation(step, loss, told))
        self._keep()
        if step == recipe.steps:
            self._emit(Notice(f"Recommended: step {best(self._measured).step}, {self._reason()}."))

    def _score(self) -> Fidelity:
        fidelity, pictures = scored(self._training, self._scorers)
        sheet = comparison_sheet(pictures, [f"seed {n + 1}" for n in range(PER_PROMPT)])
        write_atomic(self._file("png"), lambda file: sheet.save(file, "PNG"))
        return fidelity

    def _file(self, kind: str) -> Path:
        return self._folder / STEPS / f"step-{self._training.step:06d}.{kind}"

    def _reason(self) -> str:
        found = best(self._measured).fidelity
        if self._scorers and found and all(one.fidelity for one in self._measured if one.step):
            count = PER_PROMPT * len(self._prompts)
            return (
                f"whose {count} pictures are the best by {self._scorers[0].name} "
                f"(concept {found.concept:.2f}, prompt {found.prompt:.2f})"
            )
        what = "held-out pictures" if self._training.recipe.held_out else "the pictures learned from"
        return f"of the lowest loss on {what} at fixed noise"

    def _keep(self) -> None:
        trained = bool(self._measured[-1].step)
        told = {
            "held_out": self._training.recipe.held_out,
            "recommended": best(self._measured).step if trained else None,
            "reason": self._reason() if trained else None,
        }
        text = json.dumps(told | {"measured": [asdict(one) for one in self._measured]}, indent=1) + "\n"
        write_atomic(self._folder / FILE, lambda file: file.write_text(text, encoding="utf-8"))


def read_measured(folder: Path, until: int) -> list[Measured]:
    """What was measured in `folder` up to step `until`."""
    file = folder / FILE
    found = json.loads(file.read_text(encoding="utf-8"))["measured"] if file.is_file() else []
    return [
        Measured(one["step"], one["loss"], Fidelity(**one["fidelity"]) if one.get("fidelity") else None)
        for one in found
        if one["step"] <= until
    ]
