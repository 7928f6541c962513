"""Which device the studio computes on, and in which precision."""

import re

import torch

from studio.errors import UsageError

DEVICES = ("cuda", "mps", "cpu")


def pick_device(wanted: str | None = None) -> torch.device:
    """`wanted` ("cuda", "cuda:1", "mps", "cpu"), else the best there is; raises UsageError where it is not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted is None:
        return torch.device(next(name for name in DEVICES if present[name]))
    named = re.fullmatch(r"(cpu|mps|cuda)(?::(\d+))?", wanted)
    count = torch.cuda.device_count() if wanted.startswith("cuda") else 1
    if named is None or not present[named[1]] or int(named[2] or 0) >= count:
        available = ", ".join(name for name in DEVICES if present[name])
        raise UsageError(f"There is no device {wanted!r} here.", f"Use one of: {available}.")
    return torch.device(wanted)


def pick_dtype(device: torch.device) -> torch.dtype:
    """The precision for `device`: float32 on a CPU, whose half-precision units are slow or missing;
    bfloat16 on CUDA where it is native (the VAE of SDXL overflows in float16), float16 elsewhere.
    """
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32; most CPUs emulate it, hundreds of times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
