"""Letting adapters act on a base, without a trace afterwards, and with a receipt of what took effect."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from studio.adapters import Adapter, check_family, check_values, load_adapter
from studio.errors import StudioError, UsageError
from studio.factor_checks import fits, shape_of
from studio.factors import Factor, fitted
from studio.models import BaseModel
from studio.untrusted import shown

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
Tensor = torch.Tensor


@dataclass(frozen=True)
class Receipt:
    """What an adapter did to a base: layers by component that `matched`, that the base lacks (`unmatched`), and that
    the base has beside them under the same names but the file leaves alone (`missing`).

    `effect` is the median over matched layers of |change x| / |weight x| for a random input x, at `strength`;
    `words` are the tokens of embeddings that came along; `unread` the keys of the file that nothing explains.
    """

    adapter: str
    family: str | None
    base: str
    base_family: str
    strength: float
    matched: dict[str, int]
    unmatched: dict[str, tuple[str, ...]]
    missing: dict[str, int]
    unread: tuple[str, ...]
    words: tuple[str, ...]
    effect: float

    def warning(self) -> str | None:
        """One sentence where something of the file has no effect: counts, and three examples; else None."""
        lost = [layer for layers in self.unmatched.values() for layer in layers] + list(self.unread)
        if not lost:
            return None
        total = sum(self.matched.values())
        return (
            f"{self.adapter}: {total} layers take effect; {len(lost)} entries of the file do not fit the base"
            f" {self.base!r} and have none, e.g. {', '.join(shown(one) for one in lost[:3])}."
        )


@dataclass(frozen=True)
class _Change:
    """A parameter of the base, and what to add to it at strength 1."""

    layer: str
    parameter: torch.nn.Parameter
    factor: Factor | None
    bias: Tensor | None

    def amount(self) -> Tensor:
        if self.factor is None:
            assert self.bias is not None
            return fitted(self.bias.float(), self.parameter)
        return fitted(self.factor.delta(self.parameter.data), self.parameter)


@contextmanager
def attach(base: BaseModel, adapters: Sequence[tuple[Path | Adapter, float]]) -> Iterator[list[Receipt]]:
    """Let adapters act on `base`, each with its strength, while the block runs; their changes add up.

    Every change is computed from the base's own weights and added to them in float32; the weights themselves are kept
    and put back at the end, also after an exception. Gives one receipt an adapter. Raises UsageError where one does not
    fit the base at all, StudioError where one has no or unusable content, before anything is changed.
    """
    loaded = [(load_adapter(one) if isinstance(one, Path) else one, strength) for one, strength in adapters]
    for adapter, _ in loaded:
        check_family(adapter, base.family, base.source.name)
        check_values(adapter)
    planned = [_plan(base, adapter) for adapter, _ in loaded]
    for (adapter, _), (changes, unmatched) in zip(loaded, planned, strict=True):
        _refuse_unmatched(adapter, changes, unmatched, base)
    with ExitStack() as undo, torch.no_grad():
        receipts = [
            _receipt(base, adapter, strength, changes, unmatched)
            for (adapter, strength), (changes, unmatched) in zip(loaded, planned, strict=True)
        ]
        undo.callback(_put_back, kept := {})
        _merge([(changes, strength) for (_, strength), (changes, _) in zip(loaded, planned, strict=True)], kept)
        for adapter, _ in loaded:
            _teach_words(base, adapter, undo)
        with torch.enable_grad():
            yield receipts


def layer_of(base: BaseModel, layer: str) -> torch.nn.Module | None:
    """The module that "component.path" names in `base`; None where there is none.

    Text encoders carry "text_model." in some releases of transformers and not in others.
    """
    component, _, path = layer.partition(".")
    root = getattr(base.pipe, component, None) if component in COMPONENTS else None
    for name in (path, path.removeprefix("text_model.")):
        try:
            found = None if root is None else root.get_submodule(name)
        except AttributeError:
            continue
        if found is not None and getattr(found, "weight", None) is not None:
            return found
    return None


def _plan(base: BaseModel, adapter: Adapter) -> tuple[list[_Change], list[str]]:
    """(changes, layers that the base lacks or has in another shape)."""
    changes: list[_Change] = []
    unmatched: list[str] = []
    for layer in adapter.layers:
        module: Any = layer_of(base, layer)
        factor, bias = adapter.factors.get(layer), adapter.biases.get(layer)
        if module is None or (factor is not None and not fits(factor, module.weight)):
            unmatched.append(layer)
            continue
        if factor is not None:
            changes.append(_Change(layer, module.weight, factor, None))
        if bias is not None and module.bias is not None and bias.shape == module.bias.shape:
            changes.append(_Change(layer, module.bias, None, bias))
        elif bias is not None:
            unmatched.append(f"{layer}.bias")
    return changes, unmatched


def _refuse_unmatched(adapter: Adapter, changes: list[_Change], unmatched: list[str], base: BaseModel) -> None:
    if changes or (adapter.embeddings and not unmatched):
        return
    examples = [*unmatched, *adapter.unread][:3]
    found = layer_of(base, examples[0]) if examples and examples[0] in adapter.factors else None
    why = f"has {list(found.weight.shape)} there" if found is not None else "has no such layer"  # pyright: ignore
    size = "" if found is None else " of " + " x ".join(map(str, shape_of(adapter.factors[examples[0]])))
    raise UsageError(
        f"{adapter.name} does not fit the base {base.source.name!r}: none of its {len(adapter.layers)} layers is there."
        f" It changes {', '.join(map(shown, examples))}{size}, and the base {why}.",
        "Give the base that the adapter was made for with --base.",
    )


def _receipt(
    base: BaseModel, adapter: Adapter, strength: float, changes: list[_Change], unmatched: list[str]
) -> Receipt:
    reached = {change.layer for change in changes}
    matched = Counter(layer.partition(".")[0] for layer in reached)
    effects = [_probe(change) for change in changes if change.factor is not None and change.parameter.dim() > 1]
    effect = abs(strength) * (float(torch.tensor(effects).median()) if effects else 0.0)
    by_component: dict[str, tuple[str, ...]] = {}
    for layer in unmatched:
        component = layer.partition(".")[0]
        by_component[component] = (*by_component.get(component, ()), layer)
    return Receipt(
        adapter.name, adapter.family, base.source.name, base.family, strength, dict(matched), by_component,
        _missing(base, reached), adapter.unread, tuple(adapter.embeddings), effect,
    )  # fmt: skip


def _probe(change: _Change) -> float:
    weight = change.parameter.data.float().flatten(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(weight.shape[1], generator=generator).to(weight.device)
    moved = (change.amount().flatten(1) @ x).norm()
    return float(moved / (weight @ x).norm().clamp(min=1e-12))


def _missing(base: BaseModel, reached: set[str]) -> dict[str, int]:
    """Layers named like the changed ones, e.g. all `to_q` of the UNet, that are not changed."""
    counts: dict[str, int] = {}
    for component in {layer.partition(".")[0] for layer in reached}:
        mine = [layer.partition(".")[2] for layer in reached if layer.startswith(f"{component}.")]
        endings = tuple({f".{_ending(path)}" for path in mine})
        there = [name for name, part in getattr(base.pipe, component).named_modules() if hasattr(part, "weight")]
        counts[component] = sum(f".{name}".endswith(endings) for name in there) - len(mine)
    return {component: count for component, count in counts.items() if count > 0}


def _ending(path: str) -> str:
    """The last name of `path`, and the one before where that is a number: "to_q", "to_out.0"."""
    names = path.split(".")
    return ".".join(names[-2:] if names[-1].isdigit() else names[-1:])


def _merge(planned: list[tuple[list[_Change], float]], kept: dict[torch.nn.Parameter, Tensor]) -> None:
    """Add all changes to the parameters they belong to; `kept` receives each parameter's own values first."""
    by_parameter: dict[torch.nn.Parameter, list[tuple[_Change, float]]] = {}
    for changes, strength in planned:
        for change in changes:
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


def _teach_words(base: BaseModel, adapter: Adapter, undo: ExitStack) -> None:
    """Let the base's tokenizers and text encoders know the adapter's new words."""
    towers = {"clip_l": 0, "clip_g": 1, "*": 0}
    for token, embeddings in adapter.embeddings.items():
        for tower, rows in embeddings.items():
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
            _teach(encoder, tokenizer, names, rows, undo)


def _teach(encoder: Any, tokenizer: Any, names: list[str], rows: Tensor, undo: ExitStack) -> None:
    """Add words with their rows of the table; diffusers' own way back leaves all but the first word behind."""
    own, state = encoder.get_input_embeddings(), tokenizer.backend_tokenizer.to_str()

    def forget() -> None:
        encoder.set_input_embeddings(own)
        tokenizer._tokenizer = Tokenizer.from_str(state)

    undo.callback(forget)
    tokenizer.add_tokens(names)
    table = own.weight.data
    new = table.new_zeros(len(tokenizer), table.shape[1])
    new[: len(table)] = table
    new[tokenizer.convert_tokens_to_ids(names)] = rows.to(table)
    encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(new))
