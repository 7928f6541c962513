"""What an adapter file holds, told from its header: kinds, ranks, origin, and what looks wrong with it.

Every text in a report comes from a stranger and is made safe to show; markup in it is not escaped.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from studio.adapter_keys import parse_key
from studio.adapters import PEFT_WEIGHTS, Adapter
from studio.bases import SDXL_BLOCKS
from studio.concepts import file_hash
from studio.factors import Dora, Factor, Hadamard, Kronecker, LowRank, tensors_of
from studio.rotation import Rotation
from studio.trigger_words import TAGS_KEY, tag_counts, trigger_words
from studio.untrusted import shown

_B_LORA = {role: f"unet.{block}." for role, block in SDXL_BLOCKS.items()}
HIGH_SCALE = 4.0
_TRAINING_PREFIXES = ("ss_", "sshs_", "studio.", "modelspec.")
_TAG_LIMIT = 20
_TRAINING_LIMIT = 150


@dataclass(frozen=True)
class Block:
    """The layers of one part of the model, with the ranks and alphas that occur in it; None where none is stated."""

    name: str
    layers: int
    parameters: int
    ranks: tuple[int | None, ...]
    alphas: tuple[float | None, ...]


@dataclass(frozen=True)
class AdapterReport:
    """What `report_on` found. `halves` are those of a B-LoRA, none for other adapters; `kinds` counts layers."""

    name: str
    format: str
    family: str | None
    bytes: int
    kinds: dict[str, int]
    layers: int
    parameters: int
    blocks: tuple[Block, ...]
    halves: tuple[str, ...]
    words: tuple[str, ...]
    triggers: tuple[str, ...]
    tags: tuple[tuple[str, int], ...]
    training: dict[str, str]
    suspicious: tuple[str, ...]


def report_on(adapter: Adapter, path: Path) -> AdapterReport:
    """The report of `adapter`, read from `path`; its tensors need no values."""
    factors = adapter.factors
    kinds = Counter(factor.kind for factor in factors.values())
    if adapter.biases:
        kinds["bias"] = len(adapter.biases)
    words = [rows for towers in adapter.embeddings.values() for rows in towers.values()]
    tensors = [*(t for factor in factors.values() for t in tensors_of(factor)), *adapter.biases.values(), *words]
    return AdapterReport(
        name=shown(adapter.name),
        format=adapter.format,
        family=adapter.family,
        bytes=weights_file(path).stat().st_size,
        kinds=dict(kinds.most_common()),
        layers=len(adapter.layers),
        parameters=sum({id(tensor): tensor.numel() for tensor in tensors}.values()),
        blocks=_blocks(adapter),
        halves=_halves(adapter),
        words=tuple(shown(token) for token in adapter.embeddings),
        triggers=tuple(trigger_words(adapter.metadata, adapter.embeddings)),
        tags=_frequent_tags(adapter.metadata),
        training=_training(adapter.metadata),
        suspicious=(*_suspicious_alphas(adapter), *_suspicious_keys(adapter.unread)),
    )


def weights_file(path: Path) -> Path:
    """The file with the weights, where `path` may be a folder of PEFT."""
    return path / PEFT_WEIGHTS if path.is_dir() else path


def sha256(path: Path) -> str:
    """The hash of the file with the weights, as hexadecimal digits."""
    return file_hash(weights_file(path))


def block_of(layer: str) -> str:
    """The part of the model that `layer` is in: a level of the UNet, a block of a transformer, or a text encoder."""
    component, _, path = layer.partition(".")
    if component.startswith("text_encoder"):
        return component
    names = path.split(".")
    return shown(".".join([component, names[0], *[name for name in names[1:2] if name.isdigit()]]), 80)


def alpha_of(factor: Factor) -> float | None:
    """The alpha that the file states for `factor`."""
    match factor:
        case Dora():
            return alpha_of(factor.inner)
        case LowRank() | Hadamard() | Kronecker() | Rotation():
            return factor.alpha
    return None


def examples(names: Iterable[str], count: int = 3) -> str:
    """The first few of `names`, safe to show."""
    return ", ".join(shown(name, 100) for name in list(names)[:count])


def _blocks(adapter: Adapter) -> tuple[Block, ...]:
    by_block: dict[str, list[str]] = {}
    for layer in sorted(adapter.layers):
        by_block.setdefault(block_of(layer), []).append(layer)
    return tuple(_block(name, layers, adapter) for name, layers in by_block.items())


def _block(name: str, layers: list[str], adapter: Adapter) -> Block:
    factors = [adapter.factors[layer] for layer in layers if layer in adapter.factors]
    biases = [adapter.biases[layer] for layer in layers if layer in adapter.biases]
    tensors = [*(tensor for factor in factors for tensor in tensors_of(factor)), *biases]
    alphas = {alpha_of(factor) for factor in factors}
    finite = sorted(alpha for alpha in alphas if alpha is not None and math.isfinite(alpha))
    ranks = {factor.rank for factor in factors}
    return Block(
        name,
        len(layers),
        sum({id(tensor): tensor.numel() for tensor in tensors}.values()),
        (*sorted(rank for rank in ranks if rank is not None), *[None] * (None in ranks)),
        (*finite, *[None] * (None in alphas)),
    )


def _halves(adapter: Adapter) -> tuple[str, ...]:
    """A B-LoRA is told by its place: nothing but one or two blocks of SDXL's UNet."""
    if not adapter.layers or not all(layer.startswith(tuple(_B_LORA.values())) for layer in adapter.layers):
        return ()
    return tuple(half for half, start in _B_LORA.items() if any(layer.startswith(start) for layer in adapter.layers))


def _frequent_tags(metadata: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """The most frequent words of the captions."""
    return tuple((shown(tag, 80), count) for tag, count in tag_counts(metadata).most_common(_TAG_LIMIT))


def _training(metadata: Mapping[str, str]) -> dict[str, str]:
    told = sorted(key for key in metadata if key.startswith(_TRAINING_PREFIXES) and key != TAGS_KEY)
    return {shown(key, 60): shown(metadata[key]) for key in told[:_TRAINING_LIMIT]}


def _suspicious_alphas(adapter: Adapter) -> list[str]:
    said = []
    scaled = {layer: factor for layer, factor in adapter.factors.items() if factor.rank is not None}
    alphas = {layer: alpha_of(factor) for layer, factor in scaled.items()}
    stated = {layer: alpha for layer, alpha in alphas.items() if alpha is not None}
    if broken := [layer for layer, alpha in stated.items() if not math.isfinite(alpha)]:
        said.append(f"{len(broken)} alphas are not finite numbers, e.g. of {examples(broken)}")
    missing = [layer for layer in scaled if layer not in stated]
    if missing and (stated or adapter.format.startswith(("kohya", "LyCORIS"))):
        said.append(f"{len(missing)} layers state no alpha and get their rank (scale 1), e.g. {examples(missing)}")
    different = Counter(alpha for alpha in stated.values() if math.isfinite(alpha))
    if len(different) > 1:
        each = ", ".join(f"{alpha:g} ({count} layers)" for alpha, count in different.most_common(4))
        said.append(f"the alphas differ: {each}; plain diffusers gives layers of such a file a wrong strength")
    high = {layer: alpha / (scaled[layer].rank or 1) for layer, alpha in stated.items() if math.isfinite(alpha)}
    high = {layer: ratio for layer, ratio in high.items() if ratio > HIGH_SCALE}
    if high:
        most = max(high, key=high.__getitem__)
        said.append(f"alpha is more than {HIGH_SCALE:g} times the rank in {len(high)} layers,"
                    f" most in {shown(most, 100)}: {high[most]:g} times")  # fmt: skip
    return said


def _suspicious_keys(unread: tuple[str, ...]) -> list[str]:
    said = []
    incomplete = [key for key in unread if parse_key(key) is not None]
    unknown = [key for key in unread if parse_key(key) is None]
    if incomplete:
        said.append(
            f"{len(incomplete)} tensors belong to layers whose parts are incomplete or do not fit together and have"
            f" no effect, e.g. {examples(incomplete)}"
        )
    if unknown:
        said.append(f"{len(unknown)} keys are of no known convention and have no effect, e.g. {examples(unknown)}")
    return said
