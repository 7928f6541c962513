"""A word of the concept's own, learned with its adapter: textual inversion (Gal et al. 2023, arXiv:2208.01618) together
with the weights, as pivotal tuning has it."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from studio.attaching import TOWERS, add_words
from studio.errors import UsageError
from studio.models import BaseModel
from studio.trainers.data import generator_for
from studio.trainers.recipe import Recipe
from studio.trainers.tuners import Words


class NewWord:
    """`recipe.trigger` as a new token of every tokenizer of `base`, with one row [width] for every text encoder.

    The rows begin as words of the base do: normal, with the mean and deviation of its table. Nothing else of the text
    encoders is trained. Raises UsageError where the base has the word already.
    """

    def __init__(self, base: BaseModel, recipe: Recipe) -> None:
        self._base, self._token = base, recipe.trigger
        self._check_free()
        self.parameters: dict[str, nn.Parameter] = {}
        for tower, encoder, tokenizer in zip(TOWERS, base.text_encoders, base.tokenizers, strict=False):
            table: Any = encoder.get_input_embeddings()  # pyright: ignore
            words = table.weight.float()
            drawn = torch.randn(words.shape[1], generator=generator_for(recipe.seed, "word", tower)).to(words.device)
            row = nn.Parameter(words.mean(0) + words.std(0) * drawn)
            add_words(encoder, tokenizer, [self._token], row.data[None], ExitStack())
            number = tokenizer.convert_tokens_to_ids(self._token)
            encoder.set_input_embeddings(_WithRow(encoder.get_input_embeddings(), number, row))  # pyright: ignore
            self.parameters[f"word.{tower}"] = row

    def rows(self) -> Words:
        """What was learned, as adapters hold new words: token -> text encoder -> [1, width]."""
        learned = {name.removeprefix("word."): row.detach().cpu()[None] for name, row in self.parameters.items()}
        return {self._token: {tower: row.clone() for tower, row in learned.items()}}

    def _check_free(self) -> None:
        if any(self._token in tokenizer.get_vocab() for tokenizer in self._base.tokenizers):
            raise UsageError(
                f"The base knows the word {self._token!r} already, so it cannot be a new one.",
                "Choose another --trigger, or bind the concept to the word as it is with --known-word.",
            )


class _WithRow(nn.Module):
    """An embedding table of which the row `number` is `row`."""

    def __init__(self, table: nn.Module, number: int, row: nn.Parameter) -> None:
        super().__init__()
        self.table, self.number, self.row = table, number, row

    @property
    def weight(self) -> torch.Tensor:
        """The table, where others ask for its size and type."""
        return self.table.weight  # pyright: ignore

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # [B, N]
        embedded = self.table(tokens)
        return torch.where((tokens == self.number)[..., None], self.row.to(embedded.dtype), embedded)
