"""Which ways of computing this machine has: attention backends and kernel compilers, each tried or looked for."""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
_COMPILERS = ("c++", "g++", "clang++", "cl")


@dataclass(frozen=True)
class KernelPath:
    """One way to compute: is it usable here, and what is known about it."""

    name: str
    usable: bool
    detail: str


def kernel_paths(device: torch.device, dtype: torch.dtype) -> list[KernelPath]:
    """The paths for tensors of `dtype` on `device`."""
    attention = [KernelPath(f"sdpa {name}", *_try_sdpa(kind, device, dtype)) for name, kind in _SDPA.items()]
    return [*attention, _flex_attention(device), _triton(device), _xformers(device)]


def operation_paths(device: torch.device) -> dict[str, str]:
    """How each operation of `studio.kernels` is computed on `device`."""
    fused = device.type == "cuda" and _version("triton") is not None
    return {
        "many adapters, linear": "one product with the layer's own weight" if device.type == "cuda"
        else "gathered where each acts, or stacked",
        "many adapters, convolution": "windows where each acts, or stacked",
        "attention with columns": "one Triton kernel up to 128 words and heads of 64, else from the logsumexp" if fused
        else "the framework's fused attention and its logsumexp",
        "attention in regions": "flex attention over sorted pixels" if device.type == "cuda"
        else "plain attention by groups of sorted pixels",
        "Kronecker product": "one Triton kernel where it pays, else two products" if fused else "two products",
        "blend and guide": "one Triton kernel" if fused else "the framework's",
    }  # fmt: skip


def _try_sdpa(kind: SDPBackend, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Run one tiny attention (1 sample, 2 heads, 16 tokens, width 64) with nothing but this backend."""
    query = torch.zeros(1, 2, 16, 64, device=device, dtype=dtype)
    try:
        with sdpa_kernel(kind):
            torch.nn.functional.scaled_dot_product_attention(query, query, query)
    except RuntimeError:
        return False, f"not for {dtype} on {device.type}"
    return True, f"{dtype} on {device.type}"


def _flex_attention(device: torch.device) -> KernelPath:
    if device.type == "cuda":
        usable, needs = importlib.util.find_spec("triton") is not None, "triton"
    else:
        usable, needs = device.type == "cpu" and any(shutil.which(name) for name in _COMPILERS), "a C++ compiler"
    return KernelPath("flex attention", usable, f"compiled with {needs}" if usable else f"needs {needs}")


def _triton(device: torch.device) -> KernelPath:
    found = _version("triton")
    if found is None:
        return KernelPath("triton", False, "not installed")
    if device.type == "cuda":
        return KernelPath("triton", True, f"{found}, compiles for {device.type}")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return KernelPath("triton", interpreted, f"{found}, {'interpreted' if interpreted else 'no device to compile for'}")


def _xformers(device: torch.device) -> KernelPath:
    found = _version("xformers")
    if found is None:
        return KernelPath("xformers", False, "not installed")
    return KernelPath("xformers", device.type == "cuda", found if device.type == "cuda" else f"{found}, needs CUDA")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
