"""Triton where it is installed, and what every kernel says about its numbers; nothing here needs it or a device."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # kernels stay plain functions that nobody calls
    triton, tl = None, SimpleNamespace(constexpr=object)

Tensor = torch.Tensor


def jit(kernel: Callable[..., Any]) -> Any:
    """triton.jit, or the function itself without Triton."""
    return kernel if triton is None else triton.jit(kernel)


def compiles_for(*tensors: Tensor) -> bool:
    """Whether Triton is there and the tensors lie on a device that it compiles for."""
    return triton is not None and all(one.is_cuda for one in tensors)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which a kernel adds up: float32, and float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def accumulator(dtype: torch.dtype) -> Any:
    """The same as Triton calls it."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def power_of_two(size: int, least: int = 16) -> int:
    """The next power of two, as Triton's blocks and products want it."""
    return max(least, 1 << (size - 1).bit_length())
