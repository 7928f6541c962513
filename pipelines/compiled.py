"""The transformer blocks of a UNet as compiled functions, in which adapters, gates, biases and words are data.

One function serves all blocks of a width; other concepts, strengths, regions and boxes are other tensors of the same
shapes, so that nothing is compiled again for them. The rest of the network, and steps that need gradients or read
attention, run as they are.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from torch import nn
from torch._dynamo import config
from torch._dynamo.exc import TorchDynamoException

from studio.bank_layers import Layer
from studio.errors import StudioError, UsageError
from studio.events import Emit, Notice
from studio.gates import Gate
from studio.kernels.multi_adapter import Factors
from studio.models import BaseModel
from studio.pipelines.attention_bias import BatchBias
from studio.pipelines.probe import grid
from studio.pipelines.text_cache import TextCache

Tensor = torch.Tensor
Pair = tuple[int, int]
ROWS = 32  # the ranks of a layer's adapters together are filled up to a multiple: most sets of them are one shape then
BACKEND = "inductor"
_SHAPES = 512  # compiled of one kind of block: widths, grids, batches, with a bias and without
_COMPILERS = ("c++", "g++", "clang++", "cl")
_LEFT_OUT = "Leave out --compile."


def compiled_blocks(base: BaseModel, layers: Sequence[Layer], emit: Emit) -> "CompiledBlocks":
    """Those of the UNet of `base` with the adapters of `layers`; tells what it means. Raises UsageError where there is
    nothing to compile with."""
    check_compiler(base.device)
    blocks = CompiledBlocks(base.unet, layers)
    emit(Notice("Steps of a new kind are compiled, which takes up to some minutes; those after them are faster."))
    if blocks.left_out:
        emit(Notice(f"{blocks.left_out} blocks are not compiled: their adapters are no low-rank ones."))
    return blocks


def check_compiler(device: torch.device) -> None:
    """Raise UsageError where torch.compile has nothing to compile with on `device`."""
    if device.type == "cuda" and find_spec("triton") is None:
        raise UsageError("torch.compile needs Triton on a GPU, which is not installed.", _LEFT_OUT)
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "", *_COMPILERS))):
        raise UsageError(
            "torch.compile needs a C++ compiler on a CPU; none was found.",
            f"Install g++, or name one by CXX. {_LEFT_OUT}",
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--compile is made for CPUs and CUDA, not for {device.type}.", _LEFT_OUT)


class Adapted(nn.Module):
    """A linear layer and its adapters, R ranks in all, of which each token [B, N] takes its share [B, N, R]."""

    share: Tensor

    def __init__(self, layer: nn.Linear, factors: Factors) -> None:
        super().__init__()
        self.layer = layer
        down, up = factors.flat
        self.down, self.up = (F.pad(one, (0, 0, 0, -len(one) % ROWS)) for one in (down, up))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, in] -> [B, N, out]; what is hooked to the layer itself is passed by."""
        hidden = F.linear(x, self.down) * self.share
        return F.linear(x, self.layer.weight, self.layer.bias) + hidden @ self.up


class Known(nn.Module):
    """In place of a layer that reads the text: what it gives."""

    value: Tensor

    def forward(self, text: Tensor) -> Tensor:
        """[B, N, D], whatever comes in."""
        return self.value


class _Swap(NamedTuple):
    modules: dict[str, Any]
    key: str
    own: nn.Module
    ours: nn.Module


class CompiledBlocks:
    """The blocks of `unet` that can be compiled with the adapters of `layers`: all whose layers are changed by low-rank
    factors alone. `left_out` counts the others, `forwards` those of the UNet that went through compiled blocks.
    """

    def __init__(self, unet: nn.Module, layers: Sequence[Layer] = ()) -> None:
        self._unet = unet
        self.forwards = 0
        changed = {layer.module: layer for layer in layers}
        found = {name: one for name, one in unet.named_modules() if isinstance(one, BasicTransformerBlock)}
        self._blocks = {name: one for name, one in found.items() if all(map(_fits, _inside(one, changed)))}
        self.left_out = len(found) - len(self._blocks)
        self._adapted: list[tuple[str, Layer, Adapted]] = []
        self._known: list[tuple[nn.Module, Known]] = []
        self._swaps = [swap for name, block in self._blocks.items() for swap in self._swapped(name, block, changed)]
        self._told: tuple[Gate | None, TextCache | None] = None, None

    @property
    def readers(self) -> set[nn.Module]:
        """The attention layers that get the words' keys and values from `over`."""
        return {block.attn2 for block in self._blocks.values() if block.attn2 is not None}

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Let forwards of the UNet without adapters go through compiled blocks while the block runs."""
        with self._calling(dict.fromkeys(self._blocks)):
            yield

    @contextmanager
    def over(self, size: Pair, gate: Gate | None, bias: BatchBias, text: TextCache) -> Iterator[None]:
        """Let one forward for latents of `size` go through compiled blocks, with a `gate`, a `bias` that is `simple`,
        and the keys and values of `text`."""
        self.forwards += 1
        if self._told[0] is not gate or self._told[1] is not text:
            self._tell(size, gate, text)
            self._told = gate, text
        biases = {name: bias.on_words(grid(self._unet, name, size), text.tokens) for name in self._blocks}
        for swap in self._swaps:
            swap.modules[swap.key] = swap.ours
        try:
            with self._calling(biases):
                yield
        finally:
            for swap in self._swaps:
                swap.modules[swap.key] = swap.own

    @contextmanager
    def _calling(self, biases: dict[str, Tensor | None]) -> Iterator[None]:
        for name, block in self._blocks.items():
            block._compiled_call_impl = self._call(block, biases[name])
        try:
            with config.patch(recompile_limit=_SHAPES, accumulated_recompile_limit=_SHAPES):
                yield
        except TorchDynamoException as error:
            raise StudioError(
                f"torch could not compile the network: {str(error).splitlines()[0]}", _LEFT_OUT
            ) from error
        finally:
            for block in self._blocks.values():
                del block._compiled_call_impl

    def _call(self, block: Any, bias: Tensor | None) -> Callable[..., Tensor]:
        compiled = _compiled(type(block), BACKEND)
        return lambda x, **given: compiled(block, x, **given | {"encoder_attention_mask": bias})

    def _swapped(self, name: str, block: Any, changed: dict[nn.Module, Layer]) -> Iterator[_Swap]:
        for parent in block.modules():
            for key, module in parent.named_children():
                if parent is block.attn2 and key in ("to_k", "to_v"):
                    ours: nn.Module = Known()
                    self._known.append((module, ours))
                elif (layer := changed.get(module)) is not None:
                    assert layer.low is not None
                    ours = Adapted(module, layer.low)
                    self._adapted.append((name, layer, ours))
                else:
                    continue
                yield _Swap(parent._modules, key, module, ours)

    def _tell(self, size: Pair, gate: Gate | None, text: TextCache) -> None:
        """Give the shares of a gate and the keys and values of a text to the layers."""
        shares: dict[Any, Tensor] = {}
        for name, layer, adapted in self._adapted:
            assert gate is not None
            assert layer.low is not None
            cells, rank = grid(self._unet, name, size), layer.low.down.shape[1]
            key = (cells, tuple(layer.columns), rank, gate.reaches(layer.name))
            if key not in shares:
                shares[key] = _share(layer, gate, cells, rank)
            adapted.share = shares[key]
        for layer, known in self._known:
            known.value = text.of(layer)


@cache
def _compiled(kind: type[BasicTransformerBlock], backend: str) -> Callable[..., Tensor]:
    return torch.compile(kind.forward, fullgraph=True, dynamic=False, backend=backend)


def _inside(block: nn.Module, changed: dict[nn.Module, Layer]) -> list[Layer]:
    return [changed[module] for module in block.modules() if module in changed]


def _fits(layer: Layer) -> bool:
    """Whether what changes the layer can be told as data; of those that read the text anything can."""
    return layer.stream == "text" or (type(layer.module) is nn.Linear and layer.low is not None and not layer.others)


def _share(layer: Layer, gate: Gate, cells: Pair, rank: int) -> Tensor:
    """[B, N, R] of the tokens of a grid; zero where the gate does not reach the layer."""
    weights = gate.of(layer.columns).on_grid(*cells).spread(rank)
    if not gate.reaches(layer.name):
        weights = torch.zeros_like(weights)
    return F.pad(weights, (0, -weights.shape[1] % ROWS)).unflatten(0, (gate.samples, -1))
