"""Tensors that are costly to make and follow from their key alone, kept on disk."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from studio.home import write_atomic

Tensors = dict[str, torch.Tensor]


def remember(folder: Path, key: tuple[str, ...], make: Callable[[], Tensors]) -> Tensors:
    """The tensors kept under `key`, or those of `make`, which are then kept.

    A file that cannot be read or holds a number that is not finite counts as absent. Raises StudioError where the
    disk refuses.
    """
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"
    try:
        found = load(path.read_bytes())
        if all(bool(tensor.isfinite().all()) for tensor in found.values()):
            return found
    except (OSError, SafetensorError):
        pass
    made = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
    write_atomic(path, lambda file: file.write_bytes(save(made)))
    return made


def file_id(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
