"""What a training puts into a UNet. Each method is one class in a file of its own; the loop knows only this."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel

from studio.errors import StudioError, UsageError
from studio.factors import Factor
from studio.models import BaseModel
from studio.trainers.recipe import Recipe

Words = dict[str, dict[str, torch.Tensor]]  # token -> text encoder -> rows [n, width]
_PLACES = {
    "lora": "lora:LoraTuner",
    "b-lora": "lora:LoraTuner",
    "krona": "krona:KronaTuner",
    "lokr": "peft_tuner:PeftTuner",
    "loha": "peft_tuner:PeftTuner",
    "oft": "oft:OftTuner",
}


class Tuner(Protocol):
    """An adapter while it is trained: put in when made, as nothing at first.

    `parameters` are its float32 tensors by name, all that is trained; those named in `text` lie in the text encoders.
    `notes` say its size in the file's metadata; `loads` says whether plain diffusers reads that file. `kept` are
    tensors of it that are not trained, but not to be made again from the recipe bit for bit.
    """

    @staticmethod
    def layers_of(base: BaseModel, recipe: Recipe) -> Mapping[str, torch.nn.Linear | torch.nn.Conv2d]:
        """The layers of the UNet that it would act on; raises UsageError for what does not fit them."""
        ...

    parameters: dict[str, torch.nn.Parameter]
    text: frozenset[str]
    notes: dict[str, str]
    loads: bool
    kept: dict[str, torch.Tensor]

    def describe(self) -> str:
        """One sentence: what it is, and on how many layers."""
        ...

    def without(self) -> AbstractContextManager[None]:
        """The UNet as it was before, while the block runs."""
        ...

    def factors(self) -> dict[str, Factor]:
        """What is trained, by layer as adapters name it: "unet.path", "text_encoder.text_model.path"."""
        ...

    def write(self, path: Path, notes: dict[str, str], words: Words) -> None:
        """Write the adapter, the `words` that come along, and `notes` as metadata; the file gets its name only after it
        was read back and is the same."""
        ...


def make_tuner(base: BaseModel, recipe: Recipe) -> Tuner:
    """What `recipe.method` trains, put into `base`; raises UsageError for what does not fit its layers."""
    return kind_of(recipe)(base, recipe)


def kind_of(recipe: Recipe) -> Any:
    """The class of Tuner that `recipe.method` names."""
    module, _, kind = _PLACES[recipe.method].partition(":")
    return getattr(import_module(f"studio.trainers.{module}"), kind)


def count_of(parameters: Mapping[str, torch.nn.Parameter]) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in parameters.values())


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise StudioError where something trained is no number."""
    if damaged := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise StudioError(f"The trained weights are not finite ({damaged[0]}).", "Train again with a lower --lr.")


def targeted(unet: UNet2DConditionModel, recipe: Recipe) -> dict[str, torch.nn.Linear | torch.nn.Conv2d]:
    """The layers that `recipe.targets` name, by path, within `recipe.blocks` where it names any; raises UsageError for
    a block or a target that names none."""
    layers = {
        name: module for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    if recipe.blocks:
        inside = {block: [name for name in layers if name.startswith(f"{block}.")] for block in recipe.blocks}
        if missing := [block for block, names in inside.items() if not names]:
            raise UsageError(f"The network has no block called {', '.join(missing)}.", "Correct `blocks`.")
        layers = {name: layers[name] for names in inside.values() for name in names}
    endings = {target: f".{target}" for target in recipe.targets}
    missing = [one for one, ending in endings.items() if not any(f".{name}".endswith(ending) for name in layers)]
    if missing:
        raise UsageError(
            f"The network has no layers called {', '.join(missing)}.", f"Correct `targets`; usual are {recipe.targets}."
        )
    return {name: module for name, module in layers.items() if f".{name}".endswith(tuple(endings.values()))}
