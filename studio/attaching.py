"""Letting adapters act on a base, without a trace afterwards, and with a receipt of what took effect."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer

from studio.adapter_parts import PER_LAYER
from studio.adapters import Adapter, load_adapter
from studio.errors import StudioError
from studio.models import BaseModel
from studio.placing import Change, Placed, Receipt, place, receipt_of
from studio.sharing import firsts, owners_of, shared_strengths
from studio.untrusted import shown

TOWERS = ("clip_l", "clip_g")  # what files call the text encoders, in their order
Tensor = torch.Tensor


@contextmanager
def attach(base: BaseModel, adapters: Sequence[tuple[Path | Adapter, float]]) -> Iterator[list[Receipt]]:
    """Let adapters act on `base`, each with its strength, while the block runs; their changes add up. What is given
    twice, as for two concepts that were learned together, acts once, at the strength that is farther from zero.

    Every change is computed from the base's own weights and added to them in float32; the weights themselves are kept
    and put back at the end, also after an exception. Gives one receipt an adapter. Raises UsageError where one does not
    fit the base at all, StudioError where one has no or unusable content, before anything is changed.
    """
    loaded = [load_adapter(one) if isinstance(one, Path) else one for one, _ in adapters]
    strengths, owners = [strength for _, strength in adapters], owners_of(loaded)
    placed = [place(base, loaded[n]) for n in firsts(owners)]
    with ExitStack() as undo, torch.no_grad():
        receipts = [
            replace(receipt_of(placed[owner], base, strength), adapter=adapter.name)
            for adapter, owner, strength in zip(loaded, owners, strengths, strict=True)
        ]
        merge(list(zip(placed, shared_strengths(strengths, owners), strict=True)), undo)
        for one in placed:
            teach_words(base, one.adapter, undo)
        with torch.enable_grad():
            yield receipts


def merge(placed: Sequence[tuple[Placed, float]], undo: ExitStack) -> None:
    """Add all changes, each times its strength, to the parameters they belong to; `undo` puts their own values back."""
    undo.callback(_put_back, kept := {})
    by_parameter: dict[torch.nn.Parameter, list[tuple[Change, float]]] = {}
    for one, strength in placed:
        for change in one.changes:
            if strength:
                by_parameter.setdefault(change.parameter, []).append((change, strength))
    for parameter, changes in by_parameter.items():
        total = sum(strength * change.amount() for change, strength in changes)
        moved = (parameter.data.float() + total).to(parameter.dtype)
        if not moved.isfinite().all():
            raise StudioError(
                f"The change of {shown(changes[0][0].layer)} is more than {parameter.dtype} holds.",
                "Lower the strength, or train or export the adapter again.",
            )
        kept[parameter] = parameter.data.to("cpu", copy=True)
        parameter.data.copy_(moved)


def _put_back(kept: dict[torch.nn.Parameter, Tensor]) -> None:
    for parameter, own in kept.items():
        parameter.data.copy_(own)


def teach_words(base: BaseModel, adapter: Adapter, undo: ExitStack) -> None:
    """Let the base's tokenizers and text encoders know the adapter's new words."""
    towers = {tower: n for n, tower in enumerate(TOWERS)} | {"*": 0}
    for token, embeddings in adapter.embeddings.items():
        for tower, rows in embeddings.items():
            if tower == PER_LAYER:  # the receipt says that it has no effect
                continue
            encoder, tokenizer = base.text_encoders[towers[tower]], base.tokenizers[towers[tower]]
            width = encoder.get_input_embeddings().weight.shape[1]  # pyright: ignore
            if rows.shape[-1] != width:
                raise StudioError(
                    f"{adapter.name}: the word {shown(token)!r} has {rows.shape[-1]} numbers; the base reads {width}.",
                    "It was made for another base.",
                )
            names = [token, *(f"{token}_{n}" for n in range(1, len(rows)))]  # as diffusers expands it in a prompt
            if known := [name for name in names if name in tokenizer.get_vocab()]:
                raise StudioError(
                    f"{adapter.name}: the base has the word {shown(known[0])!r} already.",
                    "Import the file with a rare word as --trigger, or give it such a name.",
                )
            add_words(encoder, tokenizer, names, rows, undo)


def add_words(encoder: Any, tokenizer: Any, names: list[str], rows: Tensor, undo: ExitStack) -> None:
    """Add `names` to the tokenizer and their `rows` [n, width] to the table, until `undo` is closed.

    diffusers' own way back leaves all but the first word behind.
    """
    own, state = encoder.get_input_embeddings(), tokenizer.backend_tokenizer.to_str()

    def forget() -> None:
        encoder.set_input_embeddings(own)
        tokenizer._tokenizer = Tokenizer.from_str(state)

    undo.callback(forget)
    # Of several rows they are found as they are spelled: diffusers looks for that before it writes down all rows.
    several = [name for name in names if f"{name}_1" in names]
    exact = [name for name in names if any(name == one or name.startswith(f"{one}_") for one in several)]
    tokenizer.add_tokens([AddedToken(name, normalized=name not in exact) for name in names])
    table = own.weight.data
    new = table.new_zeros(len(tokenizer), table.shape[1])
    new[: len(table)] = table
    new[tokenizer.convert_tokens_to_ids(names)] = rows.to(table)
    encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(new))
