"""DiffuseKronA (Marjit et al. 2024, arXiv:2402.17412): W + A (x) B, two small factors a layer, never multiplied out."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.adapter_tensors import word_tensors
from studio.adapter_writing import write_adapter
from studio.adapters import Adapter
from studio.errors import UsageError
from studio.factors import Factor, Kronecker
from studio.kernels.kronecker import kronecker_conv, kronecker_linear
from studio.models import BaseModel
from studio.trainers.data import generator_for
from studio.trainers.recipe import Recipe
from studio.trainers.tuners import Words, check_finite, targeted

Layer = nn.Linear | nn.Conv2d


class KronaTuner:
    """A [a1, a2] drawn with deviation 1 / a1 and B [b1, b2, *kernel] of zeros, for every target; scale 1."""

    loads = False
    text = frozenset[str]()

    def __init__(self, base: BaseModel, recipe: Recipe) -> None:
        self._base, self._recipe, self._acts = base, recipe, True
        self.parameters: dict[str, nn.Parameter] = {}
        self.kept: dict[str, torch.Tensor] = {}
        base.unet.requires_grad_(False)
        layers = self.layers_of(base, recipe)
        wanted = _wanted(layers, recipe)
        self.notes = {"studio.factors": f"{wanted[0]} x {wanted[1]}"}
        self._factors = {name: fitting(layer, wanted) for name, layer in layers.items()}
        for name, layer in layers.items():
            self._install(name, layer)

    @staticmethod
    def layers_of(base: BaseModel, recipe: Recipe) -> dict[str, Layer]:
        """Those targeted; their factors must be as few as `recipe.parameter_count` says."""
        layers = targeted(base.unet, recipe)
        _wanted(layers, recipe)
        return layers

    def describe(self) -> str:
        """Factors, layers, numbers; and on how many layers the factors had to be smaller."""
        usual = max(set(self._factors.values()), key=list(self._factors.values()).count)
        others = sum(one != usual for one in self._factors.values())
        text = f"KronA of factors {usual[0]} x {usual[1]} on {len(self._factors)} layers"
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
        """A and B of every layer."""
        return {f"unet.{name}": Kronecker(*self._pair(name)) for name in self._factors}

    def write(self, path: Path, notes: dict[str, str], words: Words) -> None:
        """As LyCORIS's LoKr of two whole matrices; raises StudioError where a number is not finite or the file does
        not read back as it was trained."""
        check_finite(self.parameters | word_tensors(words))
        adapter = Adapter(self._recipe.name, "KronA", self._base.family, self.factors(), {}, words, metadata=notes)
        write_adapter(adapter, path, to="lycoris")

    def _pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(self.parameters[f"{name}.{part}"].detach().cpu().clone() for part in "ab")  # pyright: ignore

    def _install(self, name: str, layer: Layer) -> None:
        (a1, a2), weight = self._factors[name], layer.weight
        drawn = torch.randn(a1, a2, generator=generator_for(self._recipe.seed, "krona", name)) / a1
        a = nn.Parameter(drawn.to(weight.device))
        size = (weight.shape[0] // a1, weight.shape[1] // a2, *weight.shape[2:])
        b = nn.Parameter(torch.zeros(size, device=weight.device))
        self.parameters |= {f"{name}.a": a, f"{name}.b": b}
        layer.krona_a, layer.krona_b = a, b  # in the layer, so that a copy of the network has copies of them

        def add(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if not self._acts:
                return output
            return output + changed(module, args[0], module.krona_a, module.krona_b).to(output.dtype)

        layer.register_forward_hook(add)


def changed(layer: Layer, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What kron(a, b) adds to the output of `layer` at `x`."""
    if isinstance(layer, nn.Linear):
        return kronecker_linear(x, a, b)
    return kronecker_conv(x, a, b, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


def _wanted(layers: dict[str, Layer], recipe: Recipe) -> tuple[int, int]:
    return recipe.factors or solved(list(layers.values()), recipe.parameter_count or 0)


def fitting(layer: Layer, wanted: tuple[int, int]) -> tuple[int, int]:
    """(a1, a2) for `layer`: the largest that divide what is wanted and its outputs and inputs."""
    outputs, inputs = layer.weight.shape[:2]
    return gcd(wanted[0], outputs), gcd(wanted[1], inputs)


def parameter_count(layers: list[Layer], wanted: tuple[int, int]) -> int:
    """a1 a2 + outputs inputs kernel / (a1 a2), summed over the layers."""
    products = [(layer.weight.numel(), a1 * a2) for layer in layers for a1, a2 in [fitting(layer, wanted)]]
    return sum(product + size // product for size, product in products)


def solved(layers: list[Layer], most: int) -> tuple[int, int]:
    """The factors, powers of two and as square as can be, that use `most` parameters or the fewest below it.

    Raises UsageError where none are so few.
    """
    choices = [(2 ** -(-n // 2), 2 ** (n // 2)) for n in range(2, 16)]
    counts = {wanted: parameter_count(layers, wanted) for wanted in choices}
    within = {wanted: count for wanted, count in counts.items() if count <= most}
    if not within:
        raise UsageError(
            f"KronA on these layers takes {min(counts.values()):,} parameters at least; parameter_count is {most:,}.",
            "Ask for more, or for fewer targets.",
        )
    return max(within, key=lambda wanted: within[wanted])
