"""Regions: every concept acts on its own part of the canvas and on its own words, all in one forward a step.

The gate does the whole work: an adapter's change of the image layers is kept inside its box, its change of the keys and
values of the text on the tokens of its phrase and on those that belong to nobody. Cost: that of merging unmerged.
"""

from dataclasses import dataclass

import torch

from studio.errors import UsageError
from studio.pipelines.baselines import Plain
from studio.pipelines.compose import Run
from studio.pipelines.denoiser import Branch

Tensor = torch.Tensor


@dataclass
class Regional(Plain):
    """Boxes decide who acts where; `shared` is how strongly an adapter changes the words that belong to no concept."""

    shared: float = 1.0

    def begin(self, run: Run) -> None:
        """Needs a box for every concept; reads the prompt with all adapters."""
        boxes = {} if run.layout is None else run.layout.boxes
        if missing := [name for name in run.names if name not in boxes]:
            raise UsageError(
                f"The method needs a place for <{missing[0]}>.",
                f"Give one with --box {missing[0]}=LEFT,TOP,RIGHT,BOTTOM, or use --method merge.",
            )
        super().begin(run)
        assert run.layout is not None
        run.state["branch"] = Branch(
            run.strengths, "all", run.layout.masks(run.names, *run.size), own_words(run, self.shared)
        )

    def branches(self, run: Run) -> list[Branch]:
        """One, gated."""
        return [run.state["branch"]]


def own_words(run: Run, shared: float) -> Tensor:
    """[k, N]: one on a concept's own tokens, zero on those of the others, `shared` on the rest."""
    tokenizer = run.base.tokenizers[0]
    masks = torch.full((len(run.concepts), tokenizer.model_max_length), shared)
    for n, name in enumerate(run.names):
        tokens = run.prompt.tokens(tokenizer, name)
        masks[:, tokens] = 0
        masks[n, tokens] = 1
    return masks
