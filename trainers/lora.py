"""LoRA on a UNet (Hu et al. 2021): put in, written as one file that plain diffusers loads, and read back as proof."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save

from studio.adapter_tensors import word_tensors
from studio.errors import StudioError
from studio.factors import Dora, Factor, LowRank
from studio.home import write_atomic
from studio.models import BaseModel
from studio.tensorfile import order_metadata
from studio.trainers.inits import Beside, begin, check_init, size_in_file
from studio.trainers.recipe import Recipe
from studio.trainers.tuners import Words, check_finite, targeted

_ADAPTER = "default"
_ENCODERS = ("text_encoder", "text_encoder_2")
_TEXT_TARGETS = (".q_proj", ".k_proj", ".v_proj", ".out_proj")
_PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")  # as peft names them in files


class LoraTuner:
    """peft's LoRA: down drawn with deviation 1 / rank, up of zeros, or as `recipe.init` says.

    The change is zero at first with every init. Where its first product is not, that product is taken off in the LoRA
    itself, which then has twice the rank, of which half is trained; so the base stays as it is.

    As the recipe says, with DoRA's magnitudes (Liu et al. 2024, arXiv:2402.09353), scaled by alpha / sqrt(rank)
    (Kalajdzievski 2023, arXiv:2312.03732), with dropout, and with a LoRA of `text_rank` on the attention of every text
    encoder, of scale 1.
    """

    loads = True

    def __init__(self, base: BaseModel, recipe: Recipe) -> None:
        self._base, self._recipe = base, recipe
        self.notes = {"studio.rank": str(recipe.rank), "studio.alpha": str(recipe.alpha)}
        if recipe.init != "gaussian":
            self.notes["studio.init"] = recipe.init
        layers = self.layers_of(base, recipe)
        rank, size = size_in_file(recipe)
        alpha: Any = size  # PEFT takes fractions, though its annotation does not
        names = list(layers if recipe.blocks else recipe.targets)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=names,
            init_lora_weights="gaussian" if recipe.init == "gaussian" else True,
            use_dora=recipe.dora,
            use_rslora=recipe.rank_stabilised,
            lora_dropout=recipe.dropout,
        )
        self._parts: dict[str, Any] = {"unet": base.unet}
        if recipe.text_rank:
            self._parts |= dict(zip(_ENCODERS, base.text_encoders, strict=False))
        with torch.random.fork_rng():  # PEFT draws from the global generator
            torch.manual_seed(recipe.seed)
            base.unet.add_adapter(config, _ADAPTER)
            for part in list(self._parts)[1:]:
                rank, names = recipe.text_rank, _read_layers(base, part)
                words = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, init_lora_weights="gaussian")
                self._parts[part].add_adapter(words, _ADAPTER)
        for one in (one for module in self._parts.values() for one in module.parameters() if one.requires_grad):
            one.data = one.data.float()
        if recipe.init not in ("gaussian", "default"):
            begin(_layers(base.unet), recipe)
        self.parameters = {name: one for name, one in base.unet.named_parameters() if one.requires_grad}
        text = {
            f"{part}.{name}": one
            for part, encoder in list(self._parts.items())[1:]
            for name, one in encoder.named_parameters()
            if one.requires_grad
        }
        self.text = frozenset(text)
        self.parameters |= text
        beside = {name: one for name, one in base.unet.named_modules() if isinstance(one, Beside)}
        self.kept = {name: one.fixed for name, one in beside.items()}

    @staticmethod
    def layers_of(base: BaseModel, recipe: Recipe) -> dict[str, torch.nn.Linear | torch.nn.Conv2d]:
        """Those targeted; each must have directions enough for `recipe.init`."""
        layers = targeted(base.unet, recipe)
        check_init(layers, base.dtype, recipe)
        return layers

    def describe(self) -> str:
        """Rank and layers, and how it begins where that is not by chance alone."""
        recipe = self._recipe
        in_text = sum(".lora_B." in name for name in self.text)
        layers = sum(".lora_B." in name for name in self.parameters) - in_text
        said = f"{'DoRA' if recipe.dora else 'LoRA'} of rank {recipe.rank} on {layers} layers"
        if recipe.init != "gaussian":
            said += f", begun as {recipe.init}"
        said += f" (of rank {2 * recipe.rank} in its file)" if self.kept else ""
        return said + (f", and of rank {recipe.text_rank} on {in_text} of the text encoders" if self.text else "")

    @contextmanager
    def without(self) -> Iterator[None]:
        """The base alone."""
        self._base.unet.disable_adapters()
        try:
            yield
        finally:
            self._base.unet.enable_adapters()

    def factors(self) -> dict[str, Factor]:
        """Pairs as they act now, with DoRA's magnitudes."""
        found: dict[str, Factor] = {}
        for part, module in self._parts.items():
            level = "" if part == "unet" else "text_model."  # which not every class of transformers has
            for name, ((down, up, *magnitude), scale) in _factors(module).items():
                pair = LowRank(down, up, alpha=scale * len(down))
                made = Dora(pair, magnitude[0]) if magnitude else pair
                found[f"{part}.{level}{name.removeprefix(level)}"] = made
        return found

    def write(self, path: Path, notes: dict[str, str], words: Words) -> None:
        """As diffusers writes it; raises StudioError where a number is not finite, the disk refuses, or what is read
        back is not what was trained."""
        plain: dict[str, Any] = {}
        tensors = word_tensors(words)
        for part, module in self._parts.items():
            # A layer that drops something would do so in others' pipelines, which never set what they load to
            # evaluation. Transformers names the folder that a text encoder was loaded from.
            config = module.peft_config[_ADAPTER].to_dict() | {"lora_dropout": 0.0, "base_model_name_or_path": None}
            plain |= {
                f"{part}.{key}": sorted(value) if isinstance(value, set) else value for key, value in config.items()
            }
            tensors |= {
                f"{part}.{name}.{kind}": tensor.detach().float().cpu().contiguous()
                for name, (factors, _) in _factors(module).items()
                for kind, tensor in zip(_PARTS, factors, strict=False)
            }
        check_finite(tensors)
        metadata = notes | {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(plain, sort_keys=True)}

        def write(file: Path) -> None:
            file.write_bytes(save(tensors, metadata))
            order_metadata(file)
            _verify(self._base, file, self._parts)

        write_atomic(path, write)


def _read_layers(base: BaseModel, part: str) -> list[str]:
    """The attention layers of a text encoder that the network hears of: of SDXL's first one the last layer's output is
    not read."""
    encoder = getattr(base.pipe, part)
    unread = encoder.config.num_hidden_layers - 1 if base.family == "sdxl" and part == _ENCODERS[0] else -1
    names = [name for name, _ in encoder.named_modules() if name.endswith(_TEXT_TARGETS)]
    return [name for name in names if f".layers.{unread}." not in name]


def _verify(base: BaseModel, file: Path, parts: dict[str, Any]) -> None:
    """Let diffusers read `file` into fresh, weightless networks; every tensor and scale must be the trained one."""
    kind = type(base.pipe)
    state, alphas, metadata = kind.lora_state_dict(str(file), return_lora_metadata=True)
    trained: dict[str, Factors] = {}
    read: dict[str, Factors] = {}
    for part, module in parts.items():
        fresh = _hollow(module)
        if part == "unet":
            kind.load_lora_into_unet(state, network_alphas=alphas, unet=fresh, adapter_name=_ADAPTER, metadata=metadata)
        else:
            kind.load_lora_into_text_encoder(
                state, network_alphas=alphas, text_encoder=fresh, prefix=part, adapter_name=_ADAPTER, metadata=metadata
            )
        trained |= {f"{part}.{name}": factors for name, factors in _factors(module).items()}
        read |= {f"{part}.{name}": factors for name, factors in _factors(fresh).items()}
    wrong = [name for name in trained if name not in read or not _equal(trained[name], read[name])]
    if wrong or len(read) != len(trained):
        raise StudioError(
            f"The written LoRA does not read back as it was trained ({len(wrong)} of {len(trained)} layers differ).",
            "Nothing was kept under its name; the checkpoint is intact. Please report this with the recipe.",
        )


def _hollow(module: Any) -> Any:
    """A network of the same shape whose weights are one shared zero each, so that even a large one takes no memory."""
    with torch.device("meta"):
        kind = type(module)
        fresh: Any = kind.from_config(module.config) if hasattr(kind, "from_config") else kind(module.config)
    for one in fresh.modules():
        for name, parameter in list(one.named_parameters(recurse=False)):
            setattr(one, name, torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
        for name, buffer in list(one.named_buffers(recurse=False)):
            one.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype), persistent=False)
    return fresh


Factors = tuple[list[torch.Tensor], float]


def _layers(module: torch.nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def _factors(module: torch.nn.Module) -> dict[str, Factors]:
    """Down, up and DoRA's magnitude, and the scale, of every layer that has a LoRA, by the layer's name."""
    found: dict[str, Factors] = {}
    for name, layer in _layers(module).items():
        if _ADAPTER in layer.lora_A:
            tensors = [layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight]
            if _ADAPTER in layer.lora_magnitude_vector:
                tensors.append(layer.lora_magnitude_vector[_ADAPTER].weight)
            found[name] = (tensors, layer.scaling[_ADAPTER])
    return found


def _equal(one: Factors, other: Factors) -> bool:
    if one[1] != other[1] or len(one[0]) != len(other[0]):
        return False
    pairs = zip(one[0], other[0], strict=True)
    return all(torch.equal(a.detach().float().cpu(), b.detach().float()) for a, b in pairs)
