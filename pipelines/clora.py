"""CLoRA (Meral et al. 2024, "Contrastive Test-Time Composition of Multiple LoRA Models for Image Generation").

Each adapter draws the whole prompt alone, the others being spelled by their class word, and the base draws it too.
Before a step the latents move so that the words of one concept look at one place in all of these branches, and those of
another concept elsewhere; after it each branch gives the pixels that its own words look at, and the base the rest.
"""

from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F

from studio.errors import UsageError
from studio.pipelines.compose import Run
from studio.pipelines.denoiser import Branch
from studio.pipelines.descent import bounded, slope, unit
from studio.pipelines.probe import AttentionProbe, Maps, layers_for
from studio.spans import Spelled

Tensor = torch.Tensor
AUTHORS_CELLS = 64 * 64
_BASE = -1  # the branch in which no adapter acts


@dataclass
class Clora:
    """The authors' numbers, for 50 steps at 512 pixels: 25 updates of the latents, hence the share `refined` of 0.5.

    `step_size` is for latents of unit variance, whatever the sampler makes of them, and of 64 x 64 cells: of fewer each
    has more influence, and the step shrinks with their number; none is longer than `longest` (root mean square, our
    bound). Steps in `repeated` are refined `repeats` times. Masks hold where attention exceeds `threshold` of its
    maximum, from the share `masked_from` of the steps on, before which the branches are averaged. The maps are of
    `level` halvings of the latents, but of at least `cells` a side where the base has such layers. With `class_only`
    they are those of the class words: a trigger that was learned in few steps may look everywhere. Without `background`
    there is no branch of the base, and the first concept draws the rest.
    """

    step_size: float = 20.0
    longest: float = 0.1
    refined: float = 0.5
    repeated: tuple[int, ...] = ()
    repeats: int = 20
    temperature: float = 0.5
    threshold: float = 0.3
    masked_from: float = 0.0
    level: int = 2
    cells: int = 8
    class_only: bool = False
    background: bool = True

    folds = False

    def begin(self, run: Run) -> None:
        """Spell the prompt for every branch, find the words of each concept in it, and choose the layers to read."""
        if not 0 < self.threshold < 1 or self.temperature <= 0:
            raise UsageError(
                f"A threshold of {self.threshold} and a temperature of {self.temperature} select nothing.",
                "Give a threshold between 0 and 1, and a temperature above 0; 0.3 and 0.5 are the authors'.",
            )
        classes = run.classes
        branches, labels = [], []
        for own in ([_BASE] if self.background else []) + list(range(len(run.concepts))):
            others = {name: word for n, (name, word) in enumerate(classes.items()) if n != own}
            text = run.prompt.reworded(others)
            run.denoiser.read(str(own), text.text, run.negative, run.only(own))
            read = _at_class_words(text, classes) if self.class_only else text
            words = [read.tokens(run.base.tokenizers[0], name) for name in run.names]
            branches.append(Branch(run.only(own), str(own), columns=tuple(chain(*words))))
            labels.append([n for n, tokens in enumerate(words) for _ in tokens])
        layers = layers_for(run.base.unet, run.size, self.level, self.cells)
        run.denoiser.probe = AttentionProbe(run.base.unet, layers, run.size)
        run.state |= {"branches": branches, "labels": labels}

    def branches(self, run: Run) -> list[Branch]:
        """The base, then one for each adapter."""
        return run.state["branches"]

    def refine(self, run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
        """Descend the contrastive loss of the maps; of one concept it is zero everywhere, and nothing is computed."""
        if len(run.concepts) < 2 or run.share >= self.refined or not self.step_size:
            return latents
        scale = unit(run, latents, timestep)
        step_size = self.step_size * run.size[0] * run.size[1] / AUTHORS_CELLS
        for _ in range(self.repeats if run.step in self.repeated else 1):
            step = step_size * self._gradient(run, latents * scale, timestep)
            latents = latents - bounded(step, self.longest) / scale
        return latents

    def shares(self, run: Run, predictions: Tensor) -> Tensor:
        """Of every pixel alike for the branches that claim it."""
        if run.share < self.masked_from:
            return torch.full((len(predictions),), 1 / len(predictions))
        first = len(run.state["branches"]) - len(run.concepts)
        claims = [
            claimed(maps.mean()[:, [label == n for label in run.state["labels"][first + n]]], self.threshold)
            for n, maps in enumerate(run.denoiser.maps[first:])
        ]
        weights = shares(torch.stack(claims), self.background)
        return F.interpolate(weights, run.size, mode="nearest")

    def _gradient(self, run: Run, scaled: Tensor, timestep: Tensor) -> Tensor:
        """Of the loss for the scaled latents."""
        branches, labels = run.state["branches"], run.state["labels"]
        return slope(scaled, lambda moved: self.loss(run.denoiser.look(moved, timestep, branches), labels))[1]

    def loss(self, maps: list[Maps], labels: list[list[int]]) -> Tensor:
        """[n]: the contrast of all words of all branches."""
        words = torch.cat([one.mean().flatten(2) for one in maps], dim=1)
        return contrast(words, torch.tensor(list(chain(*labels)), device=words.device), self.temperature)


def _at_class_words(text: Spelled, classes: dict[str, str]) -> Spelled:
    """The same text, of whose phrases only the class words count."""
    return Spelled(
        text.text, {name: [(end - len(word), end) for _, end in text.places[name]] for name, word in classes.items()}
    )


def contrast(maps: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """NT-Xent [n] of maps [n, M, cells] by labels [M]: each pair of one label against all of other labels.

    Mean over ordered pairs (a, p) of -log(e(a,p) / (e(a,p) + sum of e(a,q) over other labels)), where e is
    exp(cosine / temperature) of the maps stretched to [0, 1]. Zero where there is no pair, or nothing to tell it from.
    """
    low, high = maps.amin(2, keepdim=True), maps.amax(2, keepdim=True)
    stretched = F.normalize((maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny), dim=2)
    similar = stretched @ stretched.transpose(1, 2) / temperature
    same = labels[:, None] == labels[None, :]
    pairs = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if not pairs.any() or same.all():
        return (maps * 0).sum((1, 2))
    others = similar.masked_fill(same, -torch.inf).logsumexp(2, keepdim=True)
    return (torch.logaddexp(similar, others) - similar)[:, pairs].mean(1)


def claimed(maps: Tensor, threshold: float) -> Tensor:
    """[n, h, w] of zeros and ones: where any of the maps [n, C, h, w] exceeds that share of its own maximum."""
    return (maps > threshold * maps.amax((2, 3), keepdim=True)).any(1).to(maps.dtype)


def shares(claims: Tensor, background: bool) -> Tensor:
    """Weights of the branches that sum to one, from claims [k, n, h, w]: unclaimed cells are the background's, which
    comes first, or the first concept's where there is no background."""
    free = 1 - claims.amax(0)
    masks = torch.cat([free[None], claims]) if background else torch.cat([claims[:1] + free, claims[1:]])
    return masks / masks.sum(0)
