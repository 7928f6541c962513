"""Boxes: every concept acts on its own part of the canvas, in one gated forward a step, or in one of its own.

`Regional` gates: an adapter's change of the image layers stays inside its box, its change of the keys and values of the
text on the tokens of its phrase and on those that belong to nobody. It costs what unmerged merging costs. `Masked` asks
every adapter alone and takes its box from each (as Bar-Tal et al. 2023, MultiDiffusion, do with prompts).
"""

from dataclasses import dataclass

import torch

from studio.pipelines.baselines import Plain
from studio.pipelines.compose import Run
from studio.pipelines.denoiser import Branch
from studio.pipelines.request import check_boxes
from studio.regions import Layout

Tensor = torch.Tensor


@dataclass
class Regional(Plain):
    """Boxes decide who acts where; `shared` is how strongly an adapter changes the words that belong to no concept.

    For the share `hold` of the steps the base draws alone: what was learned from pictures of one thing each would
    otherwise pull everything into one thing in the middle.
    """

    shared: float = 1.0
    hold: float = 0.2

    def begin(self, run: Run) -> None:
        """Needs a box for every concept; reads the prompt with all adapters."""
        layout = _places(run, "regional")
        super().begin(run)
        words = own_words(run, self.shared)
        run.denoiser.read("base", run.prompt.text, run.negative, run.only())
        run.state["acting"] = Branch(run.strengths, "all", layout.masks(run.names, *run.size), words)
        run.state["holding"] = Branch(run.only(), "base")

    def branches(self, run: Run) -> list[Branch]:
        """One: the base alone until it has laid the picture out, then gated."""
        return [run.state["holding" if _held(run, self.hold) else "acting"]]


def own_words(run: Run, shared: float) -> Tensor:
    """[k, N]: one on a concept's own tokens, zero on those of the others, `shared` on the rest."""
    tokenizer = run.base.tokenizers[0]
    masks = torch.full((len(run.concepts), tokenizer.model_max_length), shared)
    for n, name in enumerate(run.names):
        tokens = run.prompt.tokens(tokenizer, name)
        masks[:, tokens] = 0
        masks[n, tokens] = 1
    return masks


def read_each(run: Run) -> None:
    """Encode the prompt as "0", "1", ... for each concept by its adapter alone, the others being spelled by their
    class words."""
    for n, name in enumerate(run.names):
        others = {other: word for other, word in run.classes.items() if other != name}
        run.denoiser.read(str(n), run.prompt.reworded(others).text, run.negative, run.only(n))


@dataclass(frozen=True)
class Parts:
    """Branches that each own a part of the canvas, and the `shares` [branches, 1 or n, H, W] of its pixels."""

    branches: list[Branch]
    shares: Tensor


def parts_of(run: Run, masks: Tensor) -> Parts:
    """Each concept alone in its mask, of [k, H, W] or [n, k, H, W] without overlap; what is in none, if there is any,
    belongs to the base. `read_each` reads the texts of the concepts; the base's is "base"."""
    branches = [Branch(run.only(n), str(n)) for n in range(len(run.concepts))]
    free = 1 - masks.sum(-3, keepdim=True)
    if free.any():
        masks, branches = torch.cat([free, masks], -3), [Branch(run.only(), "base"), *branches]
    shares = masks.movedim(-3, 0).to(run.base.device)
    return Parts(branches, shares if masks.dim() == 4 else shares[:, None])


@dataclass
class Masked(Plain):
    """Every concept predicts the whole picture alone, the others being spelled by their class, and gives its box.

    What no box holds comes from the base. For the share `hold` of the steps the base draws alone.
    """

    hold: float = 0.1

    def begin(self, run: Run) -> None:
        """Needs a box for every concept; reads the prompt once for each, and once with classes only."""
        layout = _places(run, "masked")
        run.denoiser.read("base", run.prompt.reworded(run.classes).text, run.negative, run.only())
        read_each(run)
        run.state["parts"] = parts_of(run, layout.masks(run.names, *run.size))

    def branches(self, run: Run) -> list[Branch]:
        """The base until the picture is laid out, then one for each concept, and the base where something is free."""
        return [Branch(run.only(), "base")] if _held(run, self.hold) else run.state["parts"].branches

    def shares(self, run: Run, predictions: Tensor) -> Tensor:
        """All of a pixel for the branch that owns it."""
        return torch.ones(1) if len(predictions) == 1 else run.state["parts"].shares


def _held(run: Run, hold: float) -> bool:
    """Whether the base draws this step alone: for that share of the steps, but never the last."""
    return run.share < hold and run.step < len(run.scheduler.timesteps) - 1


def _places(run: Run, method: str) -> Layout:
    """The boxes of all concepts; raises UsageError where one has none."""
    check_boxes(run.names, run.layout, method)
    assert run.layout is not None
    return run.layout
