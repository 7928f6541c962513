"""PEFT's configuration beside an adapter's tensors means what peft makes of it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from studio.adapters import load_adapter
from studio.errors import UsageError


class Unet(nn.Module):
    """Two layers that have names of a UNet's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        names = {"to_k": nn.Linear(24, 16, bias=False), "to_q": nn.Linear(32, 16, bias=False)}
        self.down_blocks = nn.ModuleList([nn.ModuleDict(names)])


BASE: Any = Unet()
LAYERS = dict(BASE.named_modules())["down_blocks.0"]


def save(config: Any, folder: Path) -> Path:
    """What peft saves of an adapter that differs from where it began."""
    model: Any = get_peft_model(copy.deepcopy(BASE), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def check(folder: Path) -> None:
    """The change of every layer is the one that peft merges."""
    model: Any = PeftModel.from_pretrained(copy.deepcopy(BASE), folder)
    merged, adapter = model.merge_and_unload(), load_adapter(folder)
    assert len(adapter.factors) == len(LAYERS)
    for name, layer in LAYERS.items():
        truth = merged.down_blocks[0][name].weight - layer.weight
        assert (adapter.delta(f"unet.down_blocks.0.{name}") - truth).abs().max() < 1e-5 * truth.abs().max()


INITS = ["gaussian", "orthogonal", "eva", "pissa", "pissa_niter_4", "olora"]


@pytest.mark.parametrize("init", INITS)
def test_what_was_trained_on_a_changed_base_is_refused(tmp_path, init):
    save(LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q"], init_lora_weights=init), tmp_path)
    reloaded: Any = PeftModel.from_pretrained(copy.deepcopy(BASE), tmp_path)
    kept = torch.equal(reloaded.base_model.model.down_blocks[0]["to_k"].base_layer.weight, LAYERS["to_k"].weight)
    assert kept is (init in INITS[:3])
    if kept:
        check(tmp_path)
        return
    with pytest.raises(UsageError, match=rf"{init}.*\n.*path_initial_model_for_weight_conversion"):
        load_adapter(tmp_path)


def test_it_is_refused_in_the_metadata_of_diffusers_too(tmp_path):
    tensors = {
        key: torch.ones(2, 2) for key in ("unet.mid_block.to_k.lora_A.weight", "unet.mid_block.to_k.lora_B.weight")
    }
    for init in ("corda", "lora_ga"):
        settings = {"unet.r": 2, "unet.init_lora_weights": init}
        save_file(tensors, tmp_path / "a", {"lora_adapter_metadata": json.dumps(settings)})
        with pytest.raises(UsageError, match=init):
            load_adapter(tmp_path / "a")


def test_a_folder_in_a_folder_is_for_the_component_that_it_is_called_after(tmp_path):
    layer, drawn = "text_model.encoder.layers.0.mlp.fc1", {}
    for component in ("text_encoder", "text_encoder_2"):
        (tmp_path / component).mkdir()
        drawn[component] = torch.randn(2, 8)
        tensors = {
            f"base_model.model.{layer}.lora_A.weight": drawn[component],
            f"bundle_emb.{component}.clip_l": torch.ones(1, 768),
        }
        tensors[f"base_model.model.{layer}.lora_B.weight"] = torch.eye(8, 2)
        save_file(tensors, tmp_path / component / "adapter_model.safetensors")
        (tmp_path / component / "adapter_config.json").write_text("{}")
    adapter = load_adapter(tmp_path)
    for component, down in drawn.items():
        assert torch.equal(adapter.delta(f"{component}.{layer}"), torch.eye(8, 2) @ down)
    assert set(adapter.embeddings) == set(drawn)
    (tmp_path / "text_encoder").rename(tmp_path / "transformer")
    (tmp_path / "text_encoder_2").rename(tmp_path / "unet")
    with pytest.raises(UsageError, match=rf"{layer} in two of its folders"):
        load_adapter(tmp_path)


PATTERNS = [
    {"to_q": 7},
    {"^down_blocks.0.to_q": 7, "to_k": 9},
    {r"down_blocks\.0\.to_q$": 7},
    {"0.to_q": 7, "to_q": 9},
    {"blocks.0.to_q": 9, "q": 9, "^to_q": 9},
    {r".*\.to_q": 7},
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_names_in_patterns_mean_what_they_mean_to_peft(tmp_path, pattern):
    names = ["to_k", "to_q"]
    check(save(LoraConfig(r=2, lora_alpha=3, target_modules=names, alpha_pattern=pattern), tmp_path / "lora"))
    # two whole matrices, whose scale still counts the rank
    lokr = LoKrConfig(r=64, alpha=3, target_modules=names, rank_pattern=pattern | {"to_k": 32}, init_weights=False)
    check(save(lokr, tmp_path / "lokr"))


@pytest.mark.parametrize("pattern", ["down_blocks.*to_q", "(a+)+$", "to_[kq]", "to_q|to_k"])
def test_regular_expressions_are_refused_and_not_passed_over(tmp_path, pattern):
    save(LoraConfig(r=2, lora_alpha=3, target_modules=["to_q"], alpha_pattern={pattern: 7}), tmp_path)
    with pytest.raises(UsageError, match="regular expression"):
        load_adapter(tmp_path)
