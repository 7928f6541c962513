"""The optimisers of a training: made from its recipe, and all that they keep as plain tensors and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from studio.errors import UsageError
from studio.trainers.cache import Tensors
from studio.trainers.optimizer_choice import check_installed
from studio.trainers.recipe import Recipe
from studio.trainers.tuners import Tuner
from studio.trainers.words import NewWord

_RUNNING = ("k", "d", "d_max", "d_numerator", "weight_sum", "lr_max")  # what Prodigy and schedule-free count in groups
_NUMBERS = (torch.int64, torch.float64)


@dataclass(frozen=True)
class Part:
    """Parameters by name that share a rate and a decay, and whose gradients are clipped together."""

    parameters: dict[str, nn.Parameter]
    rate: float
    decay: float


def parts_of(recipe: Recipe, tuner: Tuner, word: NewWord | None) -> list[Part]:
    """What is trained in the UNet, in the text encoders and as the new word's rows, as far as there is any."""
    text = {name: one for name, one in tuner.parameters.items() if name in tuner.text}
    unet = {name: one for name, one in tuner.parameters.items() if name not in text}
    parts = [
        Part(unet, recipe.learning_rate, recipe.weight_decay),
        Part(text, recipe.text_learning_rate, recipe.weight_decay),
        Part({} if word is None else word.parameters, recipe.word_learning_rate, 0.0),
    ]
    return [part for part in parts if part.parameters]


def make_optimizer(recipe: Recipe, parts: list[Part]) -> Optimizer:
    """`recipe.optimizer` over `parts`; the `rate` of each of its groups is that before any schedule.

    AdamW (Loshchilov & Hutter 2019), the same with moments of 8 bits (Dettmers et al. 2022, arXiv:2110.02861), Prodigy
    (Mishchenko & Defazio 2024, arXiv:2306.06101) as its authors advise for diffusion models, Adafactor (Shazeer & Stern
    2018, arXiv:1804.04235) at the recipe's rate, without momentum, and schedule-free AdamW (Defazio et al. 2024,
    arXiv:2405.15682). Raises UsageError where the package is missing.
    """
    check_installed(recipe.optimizer)
    groups = [group for part in parts for group in _groups(part, recipe.up_rate_ratio)]
    if recipe.optimizer == "adamw-8bit":
        return import_module("bitsandbytes.optim").AdamW8bit(groups, betas=recipe.betas)
    if recipe.optimizer == "prodigy":
        # A decay of the groups, not of all: of that the package speaks on the standard output.
        return import_module("prodigyopt").Prodigy(
            groups, betas=recipe.betas, use_bias_correction=True, safeguard_warmup=True
        )
    if recipe.optimizer == "adafactor":
        return import_module("transformers.optimization").Adafactor(groups, scale_parameter=False, relative_step=False)
    if recipe.optimizer == "adamw-schedule-free":
        return import_module("schedulefree").AdamWScheduleFree(groups, betas=recipe.betas)
    return AdamW(groups, betas=recipe.betas, fused=True)


def check_optimizer(recipe: Recipe, device: torch.device) -> None:
    """Raise UsageError where the recipe's optimiser is not installed, or its kernels do not run on `device`."""
    check_installed(recipe.optimizer)
    if recipe.optimizer != "adamw-8bit":
        return
    tried = nn.Parameter(torch.zeros(4096, device=device))  # smaller ones are kept in 32 bits
    tried.grad = torch.zeros_like(tried)
    try:
        make_optimizer(recipe, [Part({"": tried}, 1.0, 0.0)]).step()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        raise UsageError(
            f"The optimizer adamw-8bit does not run on {device.type} here: {str(error).splitlines()[0]}",
            "Take a CUDA device, or --optimizer adafactor, which keeps less than AdamW everywhere.",
        ) from error


def optimizer_tensors(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """What `optimizer` keeps: KEY/NAME for the parameter NAME, group/N/KEY for the running numbers of its group N.

    Numbers of Python are int64 or float64 without dimension; no optimiser keeps tensors like that.
    """
    kept = {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    for number, group in enumerate(optimizer.param_groups):
        kept |= {f"group/{number}/{key}": group[key] for key in _RUNNING if key in group}
    return {key: value if isinstance(value, torch.Tensor) else _tensor(value) for key, value in kept.items()}


def restore_optimizer(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Tensors) -> None:
    """Go back to what `optimizer_tensors` returned, bit for bit; `tensors` hold nothing else of these parameters."""
    optimizer.state.clear()
    for place, tensor in tensors.items():
        key, _, name = place.partition("/")
        if name in parameters:
            parameter = parameters[name]
            optimizer.state[parameter][key] = _value(tensor, parameter.device)
    for number, group in enumerate(optimizer.param_groups):
        group |= {key: tensors[f"group/{number}/{key}"].item() for key in _RUNNING if key in group}


def _groups(part: Part, ratio: float) -> list[dict[str, Any]]:
    """The optimiser's groups of `part`: one, or that of every `lora_B` apart, at `ratio` times the rate (LoRA+)."""
    up = [one for name, one in part.parameters.items() if ratio != 1 and ".lora_B." in name]
    rest = [one for name, one in part.parameters.items() if ratio == 1 or ".lora_B." not in name]
    return [
        {"params": those, "rate": rate, "lr": rate, "weight_decay": part.decay}
        for those, rate in ((rest, part.rate), (up, ratio * part.rate))
        if those
    ]


def _tensor(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.int64 if isinstance(number, int) else torch.float64)


def _value(tensor: torch.Tensor, device: torch.device) -> torch.Tensor | float:
    if tensor.dim() == 0 and tensor.dtype in _NUMBERS:
        return tensor.item()
    return tensor.to(device, copy=True)
