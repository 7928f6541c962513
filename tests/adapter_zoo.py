"""One adapter file of every convention, for tiny random bases, each with its dense change by the formulas in float64.

Nothing here is shared with the studio: keys are spelled out, and a change is computed the longest way there is.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from original_layout import unet_layer
from safetensors.torch import save_file

Tensor = torch.Tensor
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = (*ATTENTION, "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "downsamplers.0.conv", "upsamplers.0.conv")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass
class Zoo:
    """A file in the making, on the base of `pipe`: tensors by key, and dense changes by "component.path"."""

    pipe: Any
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] | None = None  # of a PEFT folder
    nested: dict[str, Any] | None = None  # of a pickled file

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def draw(self, *shape: int, size: float = 1.0) -> Tensor:
        return size * torch.randn(shape, generator=self._generator)

    def layers(self, *endings: str, component: str = "unet") -> list[str]:
        """Paths of the layers whose names end so; text encoders' with "text_model." in front."""
        model = getattr(self.pipe, component)
        names = [n for n, module in model.named_modules() if n.endswith(endings) and hasattr(module, "weight")]
        plain = component == "unet"
        return [n if plain or n.startswith("text_model.") else f"text_model.{n}" for n in names]

    def module(self, path: str, component: str = "unet") -> Any:
        model = getattr(self.pipe, component)
        return model.get_submodule(path if hasattr(model, "text_model") else path.removeprefix("text_model."))

    def weight(self, path: str, component: str = "unet") -> Tensor:
        return self.module(path, component).weight.detach().double()

    def pair(self, path: str, rank: int, component: str = "unet", size: float = 1.0) -> tuple[Tensor, Tensor]:
        """(down, up) for a matrix or a convolution."""
        shape = self.weight(path, component).shape
        fan_in = shape[1:].numel()
        down = self.draw(rank, *shape[1:], size=fan_in**-0.5)
        return down, self.draw(shape[0], rank, *(1 for _ in shape[2:]), size=size)

    def add(self, path: str, change: Tensor, component: str = "unet") -> None:
        self.changes[f"{component}.{path}"] = change.reshape(self.weight(path, component).shape)

    def kohya(
        self, path: str, name: str, rank: int, alpha: float | None, component: str = "unet", prefix: str = "lora_unet_"
    ) -> tuple[Tensor, Tensor]:
        """A layer of kohya's, under `name` with dots made underscores."""
        down, up = self.pair(path, rank, component)
        key = prefix + name.replace(".", "_")
        self.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            self.tensors[f"{key}.alpha"] = torch.tensor(alpha)
        self.add(path, (rank if alpha is None else alpha) / rank * dense(down, up), component)
        return down, up

    def sgm(self, path: str) -> str:
        return unet_layer(path, self.pipe.unet)


def dense(down: Tensor, up: Tensor) -> Tensor:
    """Up @ down over all inputs and the kernel, in float64."""
    return up.double().flatten(1) @ down.double().flatten(1)


@dataclass(frozen=True)
class Row:
    """One row of the table: what it is called, the family of its base, and how it is made."""

    name: str
    family: str
    make: Callable[[Zoo], None]


ROWS: list[Row] = []


def row(name: str, family: str) -> Callable[[Callable[[Zoo], None]], Callable[[Zoo], None]]:
    def register(make: Callable[[Zoo], None]) -> Callable[[Zoo], None]:
        ROWS.append(Row(name, family, make))
        return make

    return register


def save(zoo: Zoo, folder: Path) -> Path:
    """Write what was made as a file, a PEFT folder or a pickle."""
    if zoo.nested is not None:
        torch.save(zoo.nested, folder / "adapter.pth")
        return folder / "adapter.pth"
    tensors = {key: value.contiguous() for key, value in zoo.tensors.items()}
    if zoo.config is None:
        save_file(tensors, folder / "adapter.safetensors", zoo.metadata or None)
        return folder / "adapter.safetensors"
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(zoo.config))
    return folder


def peft_metadata(zoo: Zoo, **settings: Any) -> None:
    """As diffusers writes it for the UNet."""
    known = {"r": 4, "lora_alpha": 4, "target_modules": list(ATTENTION)} | settings
    zoo.metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in known.items()})}
