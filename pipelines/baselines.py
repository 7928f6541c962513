"""Merge, Switch and Composite (Zhong et al. 2024, "Multi-LoRA Composition for Image Generation")."""

from dataclasses import dataclass

import torch

from studio.errors import UsageError
from studio.pipelines.compose import Run
from studio.pipelines.denoiser import Branch
from studio.pipelines.request import PERIOD, check_turns

Tensor = torch.Tensor


class Plain:
    """What most methods share: nothing is refined, and the one branch is the prediction."""

    folds = False

    def begin(self, run: Run) -> None:
        """Read the prompt with all adapters at their strengths."""
        run.denoiser.read("all", run.prompt.text, run.negative, run.strengths)

    def refine(self, run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
        """Leave the latents as they are."""
        return latents

    def shares(self, run: Run, predictions: Tensor) -> Tensor:
        """All branches alike."""
        return torch.full((len(predictions),), 1 / len(predictions))


@dataclass
class Merge(Plain):
    """All adapters at once, W + sum of strength * change: the usual way, and the one that blends faces."""

    folds = True

    def branches(self, run: Run) -> list[Branch]:
        """One, in which the weights already hold everything."""
        return [Branch(run.strengths)]


@dataclass
class Switch(Plain):
    """One adapter a step, each for `period` steps in turn, in the order given (equation 2)."""

    period: int = PERIOD

    def begin(self, run: Run) -> None:
        """Read the prompt once for each adapter; every one needs a turn."""
        if self.period < 1:
            raise UsageError(f"A period of {self.period} steps is none.", "Give 1 or more; 5 is the authors'.")
        check_turns(run.names, run.steps, self.period)
        _read_each(run)

    def branches(self, run: Run) -> list[Branch]:
        """The one whose turn it is."""
        turn = run.step // self.period % len(run.concepts)
        return [Branch(run.only(turn), str(turn))]


@dataclass
class Composite(Plain):
    """The mean of the predictions of every adapter alone (equation 3)."""

    def begin(self, run: Run) -> None:
        """Read the prompt once for each adapter."""
        _read_each(run)

    def branches(self, run: Run) -> list[Branch]:
        """One for each adapter."""
        return [Branch(run.only(n), str(n)) for n in range(len(run.concepts))]


@dataclass
class Recentred(Composite):
    """base + sum of (each adapter's prediction - base): Composite that does not thin each adapter to its share."""

    def begin(self, run: Run) -> None:
        """Read the prompt for each adapter, and without any."""
        _read_each(run)
        run.denoiser.read("base", run.prompt.text, run.negative, run.only())

    def branches(self, run: Run) -> list[Branch]:
        """The base alone, then one for each adapter."""
        return [Branch(run.only(), "base"), *super().branches(run)]

    def shares(self, run: Run, predictions: Tensor) -> Tensor:
        """1 - k for the base, 1 for each other."""
        return torch.tensor([1.0 - len(run.concepts)] + [1.0] * len(run.concepts))


def _read_each(run: Run) -> None:
    """The prompt under "0", "1", ..., each with one adapter on the text encoders."""
    for n in range(len(run.concepts)):
        run.denoiser.read(str(n), run.prompt.text, run.negative, run.only(n))
