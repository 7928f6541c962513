"""LoKr (Yeh et al. 2023, arXiv:2309.14859) and LoHa (Hyeon-Woo et al. 2022, arXiv:2108.06098), as peft has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig
from peft.tuners.loha import LoHaLayer
from peft.tuners.lokr import LoKrLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from studio.adapter_tensors import word_tensors
from studio.adapter_writing import write_adapter
from studio.adapters import Adapter
from studio.factors import Factor, Hadamard, Kronecker, LowRank
from studio.models import BaseModel
from studio.trainers.recipe import Recipe
from studio.trainers.tuners import Words, check_finite, targeted

_ADAPTER = "default"
_NAMES = {"lokr": "LoKr", "loha": "LoHa"}
Tensor = torch.Tensor


class PeftTuner:
    """What `recipe.method` names, by peft's own layers; its change is zero at first."""

    loads = False
    text = frozenset[str]()

    def __init__(self, base: BaseModel, recipe: Recipe) -> None:
        self._base, self._recipe = base, recipe
        self.kept: dict[str, Tensor] = {}
        self.notes = {"studio.rank": str(recipe.rank), "studio.alpha": str(recipe.alpha)}
        with torch.random.fork_rng():  # peft draws from the global generator
            torch.manual_seed(recipe.seed)
            base.unet.add_adapter(_config(recipe, list(self.layers_of(base, recipe))), _ADAPTER)
        self.layers = {name: one for name, one in base.unet.named_modules() if isinstance(one, BaseTunerLayer)}
        self.parameters = {name: one for name, one in base.unet.named_parameters() if one.requires_grad}
        for one in self.parameters.values():
            one.data = one.data.float()

    @staticmethod
    def layers_of(base: BaseModel, recipe: Recipe) -> dict[str, torch.nn.Linear | torch.nn.Conv2d]:
        """Those targeted."""
        return targeted(base.unet, recipe)

    def describe(self) -> str:
        """Kind, rank and layers; of LoKr on how many the rank is no bound, as their matrices are whole."""
        kind, rank = _NAMES[self._recipe.method], self._recipe.rank
        text = f"{kind} of rank {rank} on {len(self.layers)} layers"
        whole = sum(_ADAPTER in one.lokr_w2 for one in self.layers.values() if isinstance(one, LoKrLayer))
        return text + (f" ({whole} of them so small that their matrices are whole)" if whole else "")

    @contextmanager
    def without(self) -> Iterator[None]:
        """The base alone."""
        self._base.unet.disable_adapters()
        try:
            yield
        finally:
            self._base.unet.enable_adapters()

    def factors(self) -> dict[str, Factor]:
        """What every layer adds to its weight now."""
        return {f"unet.{name}": factor_of(layer) for name, layer in self.layers.items()}

    def write(self, path: Path, notes: dict[str, str], words: Words) -> None:
        """As LyCORIS writes it; raises StudioError where a number is not finite or the file does not read back as it
        was trained."""
        check_finite(self.parameters | word_tensors(words))
        kind, family = _NAMES[self._recipe.method], self._base.family
        adapter = Adapter(self._recipe.name, kind, family, self.factors(), {}, words, metadata=notes)
        write_adapter(adapter, path, to="lycoris")


def factor_of(layer: BaseTunerLayer) -> Factor:
    """What `layer` adds to its weight, on the CPU, apart from what goes on being trained."""
    if isinstance(layer, LoHaLayer):
        first, second = (LowRank(_own(layer, f"hada_w{n}_b"), _own(layer, f"hada_w{n}_a")) for n in (1, 2))
        return Hadamard(first, second, float(layer.alpha[_ADAPTER]))
    assert isinstance(layer, LoKrLayer)
    a = _own(layer, "lokr_w1")
    if _ADAPTER in layer.lokr_w2:  # peft scales even two whole matrices, LyCORIS does not
        return Kronecker(layer.scaling[_ADAPTER] * a, _own(layer, "lokr_w2"))
    return Kronecker(a, LowRank(_own(layer, "lokr_w2_b"), _own(layer, "lokr_w2_a")), float(layer.alpha[_ADAPTER]))


def _own(layer: BaseTunerLayer, name: str) -> Tensor:
    return getattr(layer, name)[_ADAPTER].detach().cpu().clone()


def _config(recipe: Recipe, names: list[str]) -> LoKrConfig | LoHaConfig:
    alpha: Any = recipe.alpha  # peft takes fractions, though its annotation does not
    if recipe.method == "loha":
        return LoHaConfig(r=recipe.rank, alpha=alpha, target_modules=names)
    factor = recipe.decompose_factor or -1
    # As LyCORIS begins: the first matrix drawn and the second zero, as in DiffuseKronA; peft's own way is the reverse.
    return LoKrConfig(r=recipe.rank, alpha=alpha, decompose_factor=factor, init_weights="lycoris", target_modules=names)
