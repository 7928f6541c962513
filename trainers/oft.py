"""OFT (Qiu et al. 2023, arXiv:2306.07280): every weight's rows turned by a rotation of blocks, in LyCORIS's form.

peft's OFT turns a layer's inputs, which no common file can hold, and with a kernel over 1 it is not the base at first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, gcd
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.adapter_tensors import word_tensors
from studio.adapter_writing import write_adapter
from studio.adapters import Adapter
from studio.errors import UsageError
from studio.factors import Factor
from studio.models import BaseModel
from studio.rotation import Rotation, cayley, skew
from studio.trainers.recipe import Recipe
from studio.trainers.tuners import Words, check_finite, targeted

Layer = nn.Linear | nn.Conv2d
Tensor = torch.Tensor


class OftTuner:
    """Blocks [k, n, n] of zeros for every target, k n its outputs; n is the largest divisor of them and of
    `recipe.block_size`."""

    loads = False
    text = frozenset[str]()

    def __init__(self, base: BaseModel, recipe: Recipe) -> None:
        self._base, self._recipe, self._acts = base, recipe, True
        self.parameters: dict[str, nn.Parameter] = {}
        self.kept: dict[str, Tensor] = {}
        self.notes = {"studio.block_size": str(recipe.block_size)}
        base.unet.requires_grad_(False)
        for name, layer in self.layers_of(base, recipe).items():
            self._install(name, layer)

    @staticmethod
    def layers_of(base: BaseModel, recipe: Recipe) -> dict[str, Layer]:
        """Those targeted; the outputs of each must be divided into blocks."""
        layers = targeted(base.unet, recipe)
        for name, layer in layers.items():
            if gcd(recipe.block_size or 1, layer.weight.shape[0]) == 1:
                raise UsageError(
                    f"{name} has {layer.weight.shape[0]} outputs, which have no divisor in common with block_size"
                    f" {recipe.block_size}: blocks of one turn nothing.",
                    "Choose another block_size, or leave the layer out of `targets`.",
                )
        return layers

    def describe(self) -> str:
        """Size of the blocks, layers; and on how many of them the blocks had to be smaller."""
        size = self._recipe.block_size
        others = sum(blocks.shape[1] != size for blocks in self.parameters.values())
        text = f"OFT of blocks of {size} on {len(self.parameters)} layers"
        return text + (f" ({others} of them have less to divide by)" if others else "")

    @contextmanager
    def without(self) -> Iterator[None]:
        """The base alone."""
        self._acts = False
        try:
            yield
        finally:
            self._acts = True

    def factors(self) -> dict[str, Factor]:
        """The rotation of every layer now."""
        return {f"unet.{name}": factor_of(blocks) for name, blocks in self.parameters.items()}

    def write(self, path: Path, notes: dict[str, str], words: Words) -> None:
        """As LyCORIS's Diag-OFT; raises StudioError where a number is not finite or the file does not read back as it
        was trained."""
        check_finite(self.parameters | word_tensors(words))
        adapter = Adapter(self._recipe.name, "OFT", self._base.family, self.factors(), {}, words, metadata=notes)
        write_adapter(adapter, path, to="lycoris")

    def _install(self, name: str, layer: Layer) -> None:
        outputs = layer.weight.shape[0]
        size = gcd(self._recipe.block_size or 1, outputs)
        blocks = nn.Parameter(torch.zeros(outputs // size, size, size, device=layer.weight.device))
        self.parameters[name] = blocks
        layer.oft_blocks = blocks  # in the layer, so that a copy of the network has a copy of them

        def add(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + turned(module, output, module.oft_blocks).to(output.dtype) if self._acts else output

        layer.register_forward_hook(add)


def turned(layer: Layer, output: Tensor, blocks: Tensor) -> Tensor:
    """What the rotation adds to the `output` [..., out] or [B, out, h, w] of `layer`; its bias is not turned."""
    last = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
    plain = last if layer.bias is None else last - layer.bias
    turn = cayley(skew(blocks)) - torch.eye(blocks.shape[1], device=blocks.device)
    moved = torch.einsum("...kn,knm->...km", plain.unflatten(-1, blocks.shape[:2]).to(turn.dtype), turn).flatten(-2)
    return moved if isinstance(layer, nn.Linear) else moved.movedim(-1, 1)


def factor_of(blocks: Tensor) -> Rotation:
    """On the CPU; its alpha, the bound of readers, is 1, or so much more that it does not bind."""
    own = blocks.detach().cpu().clone()
    return Rotation(own, max(1.0, float(ceil(skew(own).norm() / own.shape[:2].numel()))))
