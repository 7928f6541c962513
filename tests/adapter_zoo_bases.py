"""The bases of the zoo, what they compute, and what they compute with a dense change in their weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import adapter_zoo_lora  # noqa: F401  registers its rows
import adapter_zoo_others  # noqa: F401
import torch
from adapter_zoo import ROWS, Row, Zoo, save
from fixtures_models import build_sd15, build_sdxl

from studio.models import BaseModel, find_base, load_base

__all__ = ["ROWS", "Case", "build_bases", "build_case", "build_file", "far", "loaded_by_diffusers", "outputs"]
BUILDERS = {"sd15": build_sd15, "sdxl": build_sdxl}


@dataclass(frozen=True)
class Case:
    """A file, the base it is for, and what that base should compute with it."""

    row: Row
    file: Path
    zoo: Zoo
    base: BaseModel
    plain: list[torch.Tensor]
    truth: list[torch.Tensor]


def build_bases(folder: Path) -> dict[str, BaseModel]:
    """Tiny bases of both families, with two layers a block as real ones have."""
    return {
        family: load_base(find_base(str(build(folder / family, layers=2))), "cpu") for family, build in BUILDERS.items()
    }


def build_case(row: Row, base: BaseModel, folder: Path) -> Case:
    """The row's file in `folder`, and the truth by dense changes."""
    zoo, file = build_file(row, base, folder)
    plain = outputs(base)
    with changed(zoo):
        truth = outputs(base)
    return Case(row, file, zoo, base, plain, truth)


def build_file(row: Row, base: BaseModel, folder: Path) -> tuple[Zoo, Path]:
    """The row's dense changes, and its file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    zoo = Zoo(base.pipe)
    row.make(zoo)
    return zoo, save(zoo, folder)


@contextmanager
def changed(zoo: Zoo) -> Iterator[None]:
    """The base with the dense changes in its weights."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for kind, changes in (("weight", zoo.changes), ("bias", zoo.biases)):
        for layer, change in changes.items():
            component, path = layer.split(".", 1)
            parameter = getattr(zoo.module(path, component), kind)
            kept.append((parameter, parameter.data.clone()))
            parameter.data.copy_(parameter.data.double() + change)
    try:
        yield
    finally:
        for parameter, own in kept:
            parameter.data.copy_(own)


@torch.no_grad()
def outputs(base: BaseModel) -> list[torch.Tensor]:
    """What the text encoders and the UNet compute for one fixed input, in float64 from the weights as they are."""
    models = [base.pipe.unet, *base.text_encoders]
    for model in models:
        model.double()
    try:
        states = base.encode(["a red cat on the grass"])
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
        added = {}
        if states.pooled is not None:
            added = {"text_embeds": states.pooled, "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]]).double()}
        drawn = base.pipe.unet(noise, 500, states.embeds.double(), added_cond_kwargs=added).sample
    finally:
        for model in models:
            model.float()
    return [drawn, states.embeds]


@contextmanager
def loaded_by_diffusers(base: BaseModel, file: Path) -> Iterator[None]:
    """The base with what plain diffusers makes of a file."""
    folder, name = (file, "adapter_model.safetensors") if file.is_dir() else (file.parent, file.name)
    try:
        base.pipe.load_lora_weights(folder, weight_name=name)
        yield
    finally:
        base.pipe.unload_lora_weights()


def far(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference of two outputs."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
