"""The header of a safetensors file: names, shapes and metadata, without reading a tensor and without torch."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from studio.errors import UsageError


@dataclass(frozen=True)
class Header:
    """Shapes by tensor name, and the file's own metadata strings (untrusted)."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of `path`; raises UsageError where it is no whole safetensors file."""
    if path.suffix != ".safetensors":
        raise UsageError(
            f"{path} is not a .safetensors file.",
            "Pickled weights (.ckpt, .pt, .bin) can run code when opened and are not read: convert them first.",
        )
    try:
        with safe_open(path, framework="np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
            return Header(shapes, dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{path} cannot be read as safetensors: {error}.", "Download or export it again; it may be cut short."
        ) from error
