"""Adapter files: what one holds, whether it is sound, and its use on a base, without a trace afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.bases import FAMILY_NAMES
from studio.errors import StudioError, UsageError
from studio.tensorfile import read_header

if TYPE_CHECKING:
    import torch

    from studio.models import BaseModel

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
FAMILY_KEY = "studio.family"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_FAMILY_BY_TEXT_WIDTH = {768: "sd15", 1024: "sd2", 2048: "sdxl"}
_OTHER_FAMILIES = {"sd2": "Stable Diffusion 2"}


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA file in diffusers layout, as its header tells.

    `modules` maps "component.module.path" to (inputs, outputs) of the layer that the pair of factors changes.
    """

    path: Path
    modules: dict[str, tuple[int, int]]
    family: str | None
    metadata: dict[str, str]


def read_adapter(path: Path) -> AdapterFile:
    """Read the header of `path`; raises UsageError for a file that is missing or no LoRA in diffusers layout."""
    if not path.is_file():
        raise UsageError(f"There is no adapter file {path}.", "Train the concept again, or give another file.")
    header = read_header(path)
    modules: dict[str, tuple[int, int]] = {}
    for key, shape in header.shapes.items():
        if 0 in shape:
            raise UsageError(f"{path}: the tensor {key} is empty, {list(shape)}.", "Export the adapter again.")
        if key.split(".")[0] not in COMPONENTS or not key.endswith((_DOWN, _UP)):
            raise UsageError(
                f"{path} is no LoRA in diffusers layout: it holds {key!r}.",
                "Save it with save_lora_weights of diffusers.",
            )
        if key.endswith(_DOWN):
            up = header.shapes.get(key.removesuffix(_DOWN) + _UP)
            if up is None or up[1] != shape[0]:
                raise UsageError(
                    f"{path}: {key} {list(shape)} has no partner of its rank.", "Export the adapter again."
                )
            modules[key.removesuffix(_DOWN)] = (shape[1], up[0])
    if not modules or len(header.shapes) != 2 * len(modules):
        raise UsageError(f"{path} holds no complete pairs of LoRA factors.", "Export the adapter again.")
    return AdapterFile(path, modules, _family(modules, header.metadata), header.metadata)


def check_family(adapter: AdapterFile, family: str, base_name: str) -> None:
    """Raise UsageError where the adapter is known to be made for another family than the base's."""
    if adapter.family is not None and adapter.family != family:
        made_for = FAMILY_NAMES.get(adapter.family) or _OTHER_FAMILIES.get(adapter.family, adapter.family)
        raise UsageError(
            f"{adapter.path} was made for {made_for}; the base {base_name!r} is {FAMILY_NAMES[family]}.",
            "Give a base of the adapter's family with --base.",
        )


@contextmanager
def attach(base: "BaseModel", adapters: Sequence[tuple[Path, float]]) -> Iterator[None]:
    """Let the LoRA files act on `base`, each with its strength, while the block runs; their changes add up.

    Every module of every file must take effect and the base be as before at the end, also after an exception.
    Raises UsageError for files that do not fit the base, StudioError for files with no or unusable content.
    """
    files = [read_adapter(path) for path, _ in adapters]
    for file in files:
        check_family(file, base.family, base.source.name)
        _check_fits(file, base)
        _check_values(file)
    if not files:
        yield
        return
    from studio.hush import hushed

    names = [f"adapter_{n}" for n in range(len(files))]
    try:
        with hushed():
            for name, file in zip(names, files, strict=True):
                base.pipe.load_lora_weights(file.path.parent, weight_name=file.path.name, adapter_name=name)
                _check_attached(name, file, base)
            base.pipe.set_adapters(names, [strength for _, strength in adapters])
        yield
    finally:
        base.pipe.unload_lora_weights()


def _family(modules: dict[str, tuple[int, int]], metadata: dict[str, str]) -> str | None:
    if FAMILY_KEY in metadata:
        return metadata[FAMILY_KEY]
    if any(path.startswith("text_encoder_2.") for path in modules):
        return "sdxl"
    widths = {inputs for path, (inputs, _) in modules.items() if path.endswith("attn2.to_k")}
    return _FAMILY_BY_TEXT_WIDTH.get(widths.pop()) if len(widths) == 1 else None


def _check_fits(file: AdapterFile, base: "BaseModel") -> None:
    for path, (inputs, outputs) in file.modules.items():
        weight = _weight(base, path)
        shape = None if weight is None else tuple(weight.shape[1::-1])
        if shape != (inputs, outputs):
            found = "has no such layer" if shape is None else f"has {shape[0]} to {shape[1]} there"
            raise UsageError(
                f"{file.path} does not fit the base {base.source.name!r}: it changes {path} ({inputs} to {outputs}),"
                f" and the base {found}.",
                "Give the base that the adapter was trained on with --base.",
            )


def _weight(base: "BaseModel", path: str) -> "torch.Tensor | None":
    component, _, inner = path.partition(".")
    try:
        layer = getattr(base.pipe, component).get_submodule(inner)
    except AttributeError:
        return None
    return getattr(layer, "weight", None)


def _check_values(file: AdapterFile) -> None:
    from safetensors.torch import load_file

    tensors = load_file(file.path)
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise StudioError(f"{file.path}: {key} holds values that are not numbers.", "Train or export it again.")
    if not any(tensors[path + _DOWN].any() and tensors[path + _UP].any() for path in file.modules):
        raise StudioError(f"{file.path} changes nothing: one factor of every pair is zero.", "Train it again.")


def _check_attached(name: str, file: AdapterFile, base: "BaseModel") -> None:
    """Compare the modules that hold the adapter with those in the file: loaders drop keys without a word."""
    held = {
        f"{component}.{path}"
        for component in COMPONENTS
        if (part := getattr(base.pipe, component, None)) is not None
        for path, module in part.named_modules()
        if name in getattr(module, "lora_A", ())
    }
    if held != set(file.modules):
        missing = sorted(set(file.modules) - held)
        raise StudioError(
            f"{file.path}: {len(held)} of {len(file.modules)} modules took effect; {missing[:1]} did not.",
            "The file and the installed diffusers disagree on names: export it again, or update both.",
        )
