import json
from pathlib import Path
from typing import Any

import pytest
from training_helpers import tiny_recipe

from studio.adapters import load_concept
from studio.home import Home
from studio.tensorfile import read_header
from studio.trainers.dreambooth import train_concept
from studio.trainers.metadata import base_name, shared_metadata

EVERYTHING = {"noise_offset": 0.1, "weighting": "min-snr", "text_rank": 2, "sample_prompts": (), "dropout": 0.1}


def said(tiny: Path, home: Home, changes: dict[str, Any], **how: Any) -> dict[str, str]:
    usual: dict[str, Any] = {"prediction": "epsilon", "optimizer": "torch.optim.adamw.AdamW", "precision": "bf16"}
    usual |= {"prompts": {"milo": ["a sks cat, red,flat", "a sks cat, night", "a sks cat, "]}, "shown": 4}
    recipe = tiny_recipe(tiny, home, changes)
    settings: dict[str, Any] = usual | {"processes": 1} | how
    return shared_metadata(recipe, settings.pop("family", "sdxl"), **settings)


def test_what_kohyas_world_reads(tiny_sdxl: Path, home: Home) -> None:
    found = said(tiny_sdxl, home, {"gradient_accumulation": 3, "betas": (0.9, 0.99), "prior_weight": 3.0} | EVERYTHING)
    assert {key: found[key] for key in found if key.startswith("ss_")} == {
        "ss_output_name": "milo", "ss_sd_model_name": tiny_sdxl.name, "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False", "ss_learning_rate": "0.005", "ss_unet_lr": "0.005", "ss_text_encoder_lr": "5e-05",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.99))",
        "ss_lr_scheduler": "constant", "ss_lr_warmup_steps": "0", "ss_max_train_steps": "6", "ss_steps": "6",
        "ss_batch_size_per_device": "2", "ss_total_batch_size": "6", "ss_gradient_accumulation_steps": "3",
        "ss_gradient_checkpointing": "False", "ss_max_grad_norm": "1.0", "ss_resolution": "(32, 32)",
        "ss_enable_bucket": "True", "ss_flip_aug": "False", "ss_seed": "0",
        "ss_noise_offset": "0.1", "ss_min_snr_gamma": "5.0", "ss_prior_loss_weight": "3.0",
        "ss_mixed_precision": "bf16", "ss_tag_frequency": '{"milo": {"a sks cat": 3, "flat": 1, "night": 1, "red": 1}}',
        "ss_num_train_images": "4", "ss_num_reg_images": "3", "ss_network_module": "networks.lora",
        "ss_network_dim": "2", "ss_network_alpha": "2.0", "ss_network_dropout": "0.1",
    }  # fmt: skip


def test_what_the_model_specification_asks_for(tiny_sd15: Path, home: Home) -> None:
    found = said(tiny_sd15, home, {"resolution": 32}, family="sd15", prediction="v_prediction")
    assert {key.removeprefix("modelspec."): found[key] for key in found if key.startswith("modelspec.")} == {
        "sai_model_spec": "1.0.0", "architecture": "stable-diffusion-v1/lora", "implementation": "diffusers",
        "title": "milo", "resolution": "32x32", "prediction_type": "v", "trigger_phrase": "sks cat",
    }  # fmt: skip


def test_what_was_not_done_is_not_told(tiny_sdxl: Path, home: Home) -> None:
    found = said(tiny_sdxl, home, {"prior_preservation": False}, processes=2)
    assert not {"ss_text_encoder_lr", "ss_noise_offset", "ss_min_snr_gamma", "ss_prior_loss_weight"} & found.keys()
    assert (found["ss_num_reg_images"], found["ss_batch_size_per_device"]) == ("0", "1")


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"dora": True}, {"algo": "lora", "dora_wd": "True"}),
        ({"rank_stabilised": True}, {"algo": "lora", "rs_lora": "True"}),
        ({"method": "krona", "factors": (2, 2)}, {"algo": "lokr"}),
    ],
)
def test_the_network_is_lycoris_where_it_is_no_plain_lora(
    tiny_sdxl: Path, home: Home, changes: dict[str, Any], arguments: dict[str, str]
) -> None:
    found = said(tiny_sdxl, home, changes)
    assert (found["ss_network_module"], json.loads(found["ss_network_args"])) == ("lycoris.kohya", arguments)
    assert ("ss_network_dim" in found) == ("method" not in changes)


def test_a_base_keeps_its_name_and_loses_its_folder() -> None:
    assert base_name("/somebody/models/mine.safetensors") == "mine.safetensors"
    assert [base_name(name) for name in ("picturebook", "owner/model")] == ["picturebook", "owner/model"]


@pytest.mark.parametrize(
    "changes", [{"new_word": True, "trigger": "milo0"}, {"text_rank": 2}, {"method": "krona", "factors": (2, 2)}]
)
def test_a_file_names_no_place_and_is_the_same_the_next_time(
    tiny_sdxl: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    homes = [Home(tmp_path / name) for name in "ab"]
    one, two = (train_concept(tiny_recipe(tiny_sdxl, home, changes | {"steps": 1}), home) for home in homes)
    notes = read_header(one.adapter_file).metadata
    places = [str(homes[0].root), str(tiny_sdxl.parent), str(Path.home()), "pictures"]
    assert [key for key, text in notes.items() for place in places if place in text] == []
    assert (notes["ss_steps"], notes["studio.base"]) == ("1", tiny_sdxl.name)
    assert load_concept(one).family == "sdxl"
    assert one.adapter_file.read_bytes() == two.adapter_file.read_bytes()


@pytest.mark.parametrize("changes", [{}, {"init": "pissa"}, {"init": "pissa", "rank_stabilised": True}])
def test_the_size_of_the_network_is_that_of_the_file(tiny_sdxl: Path, home: Home, changes: dict[str, Any]) -> None:
    concept = train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 1, "rank": 2, "alpha": 3.0} | changes), home)
    header = read_header(concept.adapter_file)
    ranks = {shape[0] for name, shape in header.shapes.items() if "lora_A" in name}
    settings = json.loads(header.metadata["lora_adapter_metadata"])
    assert ranks == {int(header.metadata["ss_network_dim"])}
    assert float(header.metadata["ss_network_alpha"]) == settings["unet.lora_alpha"]


def test_pictures_count_as_often_as_their_subfolder_says(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"steps": 1})
    (recipe.pictures / "3_more").mkdir()
    (recipe.pictures / "0.png").rename(recipe.pictures / "3_more" / "0.png")
    notes = read_header(train_concept(recipe, home).adapter_file).metadata
    assert notes["ss_num_train_images"] == "5"
    assert json.loads(notes["ss_tag_frequency"]) == {"milo": {"a sks cat": 3}}
