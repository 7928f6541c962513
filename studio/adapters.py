"""Adapter files of every common convention, read into one form that no model has a part in."""

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from math import inf, isfinite, prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from studio.adapter_family import NAMES, family_of
from studio.adapter_parts import COMPONENT_KEY, PER_LAYER, make_factors, take_embeddings
from studio.adapter_settings import METADATA_KEY, Settings
from studio.concepts import Concept, check_hash
from studio.errors import StudioError, UsageError
from studio.factor_checks import alphas_of, is_active
from studio.factors import Factor, Full, tensors_of
from studio.tensorfile import Limits, is_pickle, read_header
from studio.untrusted import shown

LIMITS = Limits(header_bytes=8_000_000, tensors=20_000)
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")  # folders within one
Tensor = torch.Tensor
_AGAIN = "Export the adapter again."
_NUMBERS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """What a file changes: factors and biases by "component.path.of.layer", in the names of diffusers.

    `embeddings` are new words: token -> {"clip_l" or "clip_g" or "*": [n, width]}, or "layers" for ED-LoRA's, which
    have one row for each cross-attention. `unread` are keys that nothing explains. `family` is None where the file does
    not tell.
    """

    name: str
    format: str
    family: str | None
    factors: dict[str, Factor]
    biases: dict[str, Tensor] = field(default_factory=dict)
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """Every layer that is changed."""
        return list(self.factors | self.biases)

    def delta(self, layer: str, weight: Tensor | None = None) -> Tensor:
        """The change of the weight of `layer` at strength 1, float32; `weight` is needed for DoRA alone."""
        return self.factors[layer].delta(weight)


def load_adapter(path: Path, *, values: bool = True, allow_pickle: bool = False) -> Adapter:
    """Read `path`: a .safetensors file, a PEFT folder, or with `allow_pickle` a .pth of tensors (weights only).

    Without `values` only the header and the scalars are read, and the tensors have shapes and no content (device
    "meta"). Raises UsageError for what is no adapter, StudioError for content that cannot be used.
    """
    if path.is_dir():
        return _read_folder(path, values)
    if not path.is_file():
        raise UsageError(f"There is no adapter file {path}.", "Check the path, or train the concept again.")
    if allow_pickle and is_pickle(path):
        return assemble(path.stem, _flatten(_unpickle(path)), {}, "ED-LoRA (pickle)")
    tensors, metadata = _read_tensors(path, values)
    return assemble(path.stem, tensors, metadata)


def load_concept(concept: Concept, *, values: bool = True) -> Adapter:
    """The adapter of a concept, under the concept's name, from the very bytes that the library took in.

    An embedding that is called after its file is called by the trigger, and so is a single one that the concept's
    phrase does not say. Raises StudioError where the file has changed since, and all that `load_adapter` raises.
    """
    check_hash(concept)
    adapter = load_adapter(concept.adapter_file, values=values)
    renamed = {concept.adapter_file.stem}
    if len(adapter.embeddings) == 1 and not _says_any(concept, adapter):
        renamed |= set(adapter.embeddings)
    words = {concept.trigger if token in renamed else token: rows for token, rows in adapter.embeddings.items()}
    return replace(adapter, name=concept.name, embeddings=words)


def unsaid_words(adapter: Adapter, concept: Concept) -> list[str]:
    """The new words of `adapter` where they are several and the concept's phrase says none: prompts have to."""
    return [] if len(adapter.embeddings) == 1 or _says_any(concept, adapter) else list(adapter.embeddings)


def _says_any(concept: Concept, adapter: Adapter) -> bool:
    """Whether the concept's phrase says a new word, beside its class."""
    return any(token in concept.phrase and token not in concept.class_word for token in adapter.embeddings)


def assemble(name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str], origin: str = "") -> Adapter:
    """The adapter of `tensors` by their keys in the file; raises UsageError where none of them belongs to one.

    `origin` names the format where the keys alone do not.
    """
    if any(key.endswith((".on_input", ".ia3_l")) for key in tensors):
        raise UsageError(f"{name} holds (IA)^3, which the studio does not read.", "Give a LoRA or LyCORIS file.")
    for key, tensor in tensors.items():
        if not tensor.numel():
            raise UsageError(f"{name}: the tensor {shown(key)} is empty, {list(tensor.shape)}.", _AGAIN)
        if tensor.dtype not in _NUMBERS:
            raise UsageError(f"{name}: the tensor {shown(key)} is of the type {tensor.dtype}.", _AGAIN)
    embeddings, others = take_embeddings(name, tensors)
    made = make_factors(others, metadata, Settings(name, metadata))
    if not made.factors and not made.biases and not embeddings:
        examples = ", ".join(repr(key[:80]) for key in list(tensors)[:3]) or "no tensors"
        raise UsageError(
            f"{name} is no adapter that the studio knows: it holds {examples}.", "Give a LoRA or LyCORIS file."
        )
    label = origin or made.format or "embedding"
    family = family_of(made.factors, metadata, embeddings, others)
    return Adapter(name, label, family, made.factors, made.biases, embeddings, made.unread, metadata)


def check_family(adapter: Adapter, family: str, base_name: str) -> None:
    """Raise UsageError where the adapter is known to be made for another family than the base's."""
    if adapter.family is not None and adapter.family != family:
        raise UsageError(
            f"{adapter.name} was made for {NAMES[adapter.family]}; the base {base_name!r} is {NAMES[family]}.",
            "Give a base of the adapter's family with --base.",
        )


def check_values(adapter: Adapter) -> None:
    """Raise StudioError where a number is not finite, or nothing at all would change. Forms no change: a small file
    can stand for one that fits into no memory.
    """
    pieces = {
        **adapter.factors,
        **{f"{layer}.bias": Full(bias) for layer, bias in adapter.biases.items()},
        **{f"the word {token}": Full(one) for token, made in adapter.embeddings.items() for one in made.values()},
    }
    if not _are_finite(pieces.values()):
        name = next(name for name, factor in pieces.items() if not _are_finite([factor]))
        raise StudioError(
            f"{adapter.name}: {shown(name)} holds values that are not finite numbers.", "Train or export it again."
        )
    if not any(map(is_active, pieces.values())):
        raise StudioError(
            f"{adapter.name} changes nothing: every change in it is zero.",
            "It was saved before it was trained, or its strength is zero: train or export it again.",
        )


def _read_tensors(path: Path, values: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    header = read_header(path, LIMITS)
    try:
        with safe_open(path, framework="pt") as file:
            return {
                key: file.get_tensor(key) if values or prod(shape) == 1 else torch.empty(shape, device="meta")
                for key, shape in header.shapes.items()
            }, header.metadata
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {shown(str(error))}.", "Download or export it again.") from error


def _are_finite(factors: Iterable[Factor]) -> bool:
    """Whether every number of `factors` is finite; of all tensors at once, as there are hundreds."""
    factors = list(factors)
    tensors = [one for each in factors for one in tensors_of(each) if one.numel()]
    plain = [one if one.is_floating_point() and one.dtype.itemsize > 1 else one.float() for one in tensors]
    largest = torch._foreach_norm(plain, inf) if plain else []
    return all(map(isfinite, chain(map(float, largest), *map(alphas_of, factors))))


def _read_folder(folder: Path, values: bool, component: str | None = None) -> Adapter:
    """A PEFT folder: the configuration beside the weights says what diffusers keeps in the metadata.

    Or a folder of such folders, each called after its `component`.
    """
    file, config = folder / PEFT_WEIGHTS, folder / PEFT_CONFIG
    parts = [folder / one for one in PEFT_PARTS if (folder / one / PEFT_CONFIG).is_file()]
    if parts and not config.exists():
        return _joined(folder.name, [_read_folder(part, values, part.name) for part in parts])
    if not file.is_file() or not config.is_file():
        raise UsageError(
            f"{folder} is no PEFT adapter: it needs {PEFT_CONFIG} and {PEFT_WEIGHTS}.", "Give the adapter's own file."
        )
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{config} cannot be read as JSON: {error}.", "Export the adapter again.") from error
    tensors, metadata = _read_tensors(file, values)
    if component is not None:
        metadata[COMPONENT_KEY] = component
    return assemble(folder.name, tensors, metadata | {METADATA_KEY: json.dumps(settings)})


def _joined(name: str, parts: list[Adapter]) -> Adapter:
    """The components of one adapter, each from a folder of its own."""
    made = Adapter(name, parts[0].format, next((part.family for part in parts if part.family), None), {})
    for part in parts:
        if twice := {*part.layers} & {*made.layers}:
            raise UsageError(f"{name} changes {shown(min(twice))} in two of its folders.", "Give one of them alone.")
        made.factors.update(part.factors)
        made.biases.update(part.biases)
        for token, towers in part.embeddings.items():
            made.embeddings.setdefault(token, {}).update(towers)
        made.metadata.update({k: v for k, v in part.metadata.items() if k not in (METADATA_KEY, COMPONENT_KEY)})
    return replace(made, unread=tuple(key for part in parts for key in part.unread))


def _unpickle(path: Path) -> Any:
    """Tensors and plain containers only, by torch's restricted unpickler."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                    raise ValueError("it is compressed, which torch never does")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile file provokes; nothing of it has run
        raise UsageError(
            f"{path} holds more than tensors, or is damaged: {str(error).splitlines()[0][:200]}",
            "Only plain tensors are read from pickled files.",
        ) from error


def _flatten(content: Any) -> dict[str, Tensor]:
    """Keys as in a flat file, of Mix-of-Show's ED-LoRA, of A1111's embeddings, or of a plain dictionary."""
    if not isinstance(content, dict):
        return {}
    if isinstance(content.get("string_to_param"), dict):
        name = str(content.get("name", "embedding"))
        content = {f"bundle_emb.{name}.string_to_param.*": content["string_to_param"].get("*")}
    content = content.get("params", content)
    if not isinstance(content, dict):
        return {}
    flat: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            flat[str(key)] = value
        elif isinstance(value, dict) and key == "new_concept_embedding":
            flat |= {f"bundle_emb.{token}.{PER_LAYER}": one for token, one in value.items()}
        elif isinstance(value, dict):
            flat |= {f"{key}.{inner}": one for inner, one in value.items()}
    return {key: value.detach() for key, value in flat.items() if isinstance(value, Tensor) and _is_plain(value)}


def _is_plain(tensor: Tensor) -> bool:
    """Whether every number of `tensor` was in the file: neither sparse, nor one number spread over a large shape."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()
