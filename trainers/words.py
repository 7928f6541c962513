"""A word of each concept's own, learned with the adapter: textual inversion (Gal et al. 2023, arXiv:2208.01618)
together with the weights, as pivotal tuning has it."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import nn

from studio.attaching import TOWERS, add_words
from studio.errors import UsageError
from studio.models import BaseModel
from studio.trainers.data import generator_for
from studio.trainers.recipe import Recipe
from studio.trainers.tuners import Words


class NewWord:
    """The trigger of each concept of `recipe` as a new token of every tokenizer of `base`, with one row [width] for
    every text encoder.

    The rows begin as words of the base do: normal, with the mean and deviation of its table. Nothing else of the text
    encoders is trained. Raises UsageError where the base has a word already.
    """

    def __init__(self, base: BaseModel, recipe: Recipe) -> None:
        self._base, self._tokens = base, recipe.triggers
        check_words_free(base, self._tokens)
        self._rows: dict[str, dict[str, nn.Parameter]] = {token: {} for token in self._tokens}
        for tower, encoder, tokenizer in zip(TOWERS, base.text_encoders, base.tokenizers, strict=False):
            words: torch.Tensor = encoder.get_input_embeddings().weight.float()  # pyright: ignore
            for n, token in enumerate(self._tokens):
                generator = generator_for(recipe.seed, "word", tower, *([token] if n else []))
                drawn = torch.randn(words.shape[1], generator=generator).to(words.device)
                self._rows[token][tower] = nn.Parameter(words.mean(0) + words.std(0) * drawn)
            rows = {token: found[tower] for token, found in self._rows.items()}
            add_words(encoder, tokenizer, list(rows), torch.stack([row.data for row in rows.values()]), ExitStack())
            for token, row in rows.items():
                number = tokenizer.convert_tokens_to_ids(token)
                encoder.set_input_embeddings(_WithRow(encoder.get_input_embeddings(), number, row))  # pyright: ignore

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The rows by name: the first concept's by text encoder alone, as in a training that has no other."""
        first = self._tokens[0]
        return {
            f"word.{tower}" if token == first else f"word.{token}.{tower}": row
            for token, rows in self._rows.items()
            for tower, row in rows.items()
        }

    def rows(self) -> Words:
        """What was learned, as adapters hold new words: token -> text encoder -> [1, width]."""
        return {
            token: {tower: row.detach().cpu()[None].clone() for tower, row in rows.items()}
            for token, rows in self._rows.items()
        }


def check_words_free(base: BaseModel, tokens: Sequence[str]) -> None:
    """Raise UsageError where `base` knows one of `tokens` already: it reads it as one token, or calls a token so."""
    known = [
        word for word in tokens for one in base.tokenizers if word in one.get_vocab() or len(one.tokenize(word)) == 1
    ]
    if known:
        raise UsageError(
            f"The base knows the word {known[0]!r} already, so it cannot be a new one.",
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
