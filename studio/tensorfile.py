"""The header of a safetensors file: names, shapes and metadata, without reading a tensor and without torch."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from studio.errors import UsageError
from studio.untrusted import shown

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True)
class Limits:
    """What a header may ask for before it is refused unread."""

    header_bytes: int = 100_000_000
    tensors: int = 1_000_000


@dataclass(frozen=True)
class Header:
    """Shapes by tensor name, and the file's own metadata strings (untrusted)."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_header(path: Path, limits: Limits | None = None) -> Header:
    """The header of `path`, judged by its content and not by its name.

    Raises UsageError where it is no whole safetensors file, or asks for more than `limits`.
    """
    from safetensors import SafetensorError, safe_open  # only here: the doctor must start without it

    limits = limits or Limits()
    _check_start(path, limits)
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if len(names) > limits.tensors:
                raise UsageError(f"{path} lists {len(names):,} tensors; {limits.tensors:,} are the limit.", _DAMAGED)
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in names}
            return Header(shapes, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {shown(str(error))}.", _DAMAGED) from error


_DAMAGED = "Download or export it again; it may be cut short or damaged."


def order_metadata(path: Path) -> None:
    """Sort the metadata in the header of `path`, so that the same content is the same file: safetensors writes them in
    another order each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)  # escaped as safetensors does, so of the same length
        file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length))


def is_pickle(path: Path) -> bool:
    """Whether `path` begins like what torch.save writes."""
    with path.open("rb") as file:
        return _starts_pickle(file.read(9))


def _starts_pickle(start: bytes) -> bool:
    """A safetensors file may begin like a pickle, too: with the length of its header, but that follows at once."""
    return start[:4] == _ZIP or (start[:1] == _PICKLE and start[8:] != b"{")


def _check_start(path: Path, limits: Limits) -> None:
    """The first 8 bytes are the header's length: look at it before anything is allocated for it."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", "Check the path given.") from error
    if _starts_pickle(start):
        raise UsageError(
            f"{path} holds pickled weights, which can run code when opened.",
            "Take the .safetensors of the same weights, or convert it where you trust its maker.",
        )
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or length > size - 8:
        said = "is empty" if not start else f"is no safetensors file: {_words(length, size)}"
        raise UsageError(f"{path} {said}.", _DAMAGED)
    if length > limits.header_bytes:
        raise UsageError(
            f"{path} has a header of {length / 1e6:.1f} MB; {limits.header_bytes / 1e6:.0f} MB are the limit.", _DAMAGED
        )


def _words(length: int, size: int) -> str:
    digits = f"{length:,} bytes" if math.log2(length + 1) < 50 else "an absurd number of bytes"
    return f"it announces a header of {digits} and has {size:,} bytes in all"
