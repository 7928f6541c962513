import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from studio.bases import BaseSource, find_base, source_sizes, unknown_base
from studio.errors import UsageError

UNET = "model.diffusion_model."
SD_CROSS = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SDXL_CROSS = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


def folder(root: Path, kind: str, weights: str = "model.safetensors", **unet: object) -> Path:
    config = {
        "in_channels": 4,
        "cross_attention_dim": 768,
        "sample_size": 64,
        "block_out_channels": [1, 2, 4, 4],
    } | unet
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / weights).touch()
        (root / part / "config.json").touch()
    for part, file in (("scheduler", "scheduler_config"), ("tokenizer", "tokenizer"), ("tokenizer_2", "tokenizer")):
        (root / part).mkdir(exist_ok=True)
        (root / part / f"{file}.json").touch()
    (root / "model_index.json").write_text(json.dumps({"_class_name": kind, "unet": ["diffusers", "X"]}))
    (root / "unet" / "config.json").write_text(json.dumps(config))
    (root / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [1, 2, 4, 4]}))
    return root


def checkpoint(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    whole = {f"{UNET}input_blocks.0.0.weight": (1, 4, 1, 1), "first_stage_model.a": (1,), "cond_stage_model.a": (1,)}
    save_file({key: np.zeros(shape, np.float16) for key, shape in (whole | shapes).items()}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "family"), [("StableDiffusionPipeline", "sd15"), ("StableDiffusionXLPipeline", "sdxl")]
)
def test_folders_of_both_families_are_found(tmp_path, kind, family):
    name = str(folder(tmp_path, kind))
    assert find_base(name) == BaseSource(name, name, "folder", family)


@pytest.mark.parametrize(
    ("kind", "unet", "named"),
    [
        ("StableDiffusionPipeline", {"cross_attention_dim": 1024}, "Stable Diffusion 2"),
        ("StableDiffusionPipeline", {"in_channels": 9}, "inpainting"),
        ("StableDiffusionXLPipeline", {"in_channels": 9}, "inpainting"),
        ("StableDiffusionXLImg2ImgPipeline", {}, "refiner"),
        ("StableDiffusion3Pipeline", {}, "Stable Diffusion 3"),
        ("FluxPipeline", {}, "Flux"),
        ("AnythingElsePipeline", {}, "AnythingElsePipeline"),
    ],
)
def test_folders_of_other_families_are_refused_by_name(tmp_path, kind, unet, named):
    with pytest.raises(UsageError, match=named) as refusal:
        find_base(str(folder(tmp_path, kind, **unet)))
    assert "Stable Diffusion 1.5" in refusal.value.remedy


def test_a_folder_with_pickled_weights_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no \.safetensors weights") as refusal:
        find_base(str(folder(tmp_path, "StableDiffusionPipeline", weights="model.bin")))
    assert "safetensors" in refusal.value.remedy


@pytest.mark.parametrize(
    "lost", ["scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json",
             "vae/config.json", "text_encoder_2/config.json"]
)  # fmt: skip
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, lost):
    (folder(tmp_path, "StableDiffusionXLPipeline") / lost).unlink()
    with pytest.raises(UsageError, match=f"has no {lost}"):
        find_base(str(tmp_path))


def test_a_tokenizer_may_be_of_the_older_two_files(tmp_path):
    (folder(tmp_path, "StableDiffusionPipeline") / "tokenizer/tokenizer.json").unlink()
    (tmp_path / "tokenizer/vocab.json").touch()
    with pytest.raises(UsageError, match=r"has no tokenizer/tokenizer\.json"):
        find_base(str(tmp_path))
    (tmp_path / "tokenizer/merges.txt").touch()
    assert find_base(str(tmp_path)).family == "sd15"


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"model_index\.json"):
        find_base(str(tmp_path))


def test_a_damaged_configuration_is_named(tmp_path):
    (folder(tmp_path, "StableDiffusionPipeline") / "model_index.json").write_text("{")
    with pytest.raises(UsageError, match=r"model_index\.json cannot be read"):
        find_base(str(tmp_path))


def test_one_file_tells_its_family_by_its_tensors(tmp_path):
    sd15 = checkpoint(tmp_path / "a.safetensors", {SD_CROSS: (1, 768)})
    sdxl = checkpoint(
        tmp_path / "b.safetensors",
        {
            SDXL_CROSS: (1, 2048),
            f"{UNET}label_emb.0.0.weight": (1, 2816),
            "conditioner.embedders.0.transformer.a": (1,),
        },
    )
    assert find_base(str(sd15)).family == "sd15"
    assert find_base(str(sdxl)) == BaseSource(str(sdxl), str(sdxl), "single-file", "sdxl")


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({SD_CROSS: (1, 1024)}, "Stable Diffusion 2"),
        ({SD_CROSS: (1, 768), f"{UNET}input_blocks.0.0.weight": (1, 9, 1, 1)}, "inpainting"),
        ({f"{UNET}joint_blocks.0.a": (1,)}, "Stable Diffusion 3"),
        ({"double_blocks.0.a": (1,)}, "Flux"),
        ({SDXL_CROSS: (1, 1280), "conditioner.embedders.0.model.a": (1,)}, "refiner"),
        ({"lora_unet_a": (1,)}, "original layout"),
    ],
)
def test_files_of_other_families_are_refused_by_name(tmp_path, shapes, named):
    with pytest.raises(UsageError, match=named):
        find_base(str(checkpoint(tmp_path / "a.safetensors", shapes)))


def test_a_file_with_the_unet_alone_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({SD_CROSS: np.zeros((1, 768)), f"{UNET}input_blocks.0.0.weight": np.zeros((1, 4, 1, 1))}, path)
    with pytest.raises(UsageError, match="only a part"):
        find_base(str(path))


@pytest.mark.parametrize(
    ("name", "content"), [("a.ckpt", b"PK\x03\x04"), ("a.safetensors", b""), ("b.safetensors", b"x" * 99)]
)
def test_pickles_and_torn_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        find_base(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "hint"), [("picturebok", "'picturebook'"), ("sdx", "'sdxl'"), ("./nowhere", "hub id")]
)
def test_an_unknown_name_gets_near_names(name, hint):
    with pytest.raises(UsageError, match=name) as refusal:
        find_base(name)
    assert hint in refusal.value.remedy


@pytest.mark.parametrize("name", ["owner/model", "owner/mo del"])
def test_a_hub_base_that_is_not_cached_is_named_when_offline(name):
    with pytest.raises(UsageError, match=f"{name}' is neither here nor"):
        find_base(name)


def test_sizes_come_from_the_configuration_or_the_family(tmp_path):
    name = str(folder(tmp_path, "StableDiffusionPipeline", sample_size=[48, 64]))
    found = source_sizes(find_base(name))
    assert (found.native, found.step) == ((512, 384), 64)
    assert source_sizes(BaseSource("x", "owner/x", "hub", "sdxl")).native == (1024, 1024)


def test_finding_a_base_imports_no_torch(tmp_path):
    folder(tmp_path, "StableDiffusionPipeline")
    code = f"import sys, studio.bases as b; b.find_base({str(tmp_path)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_base_that_is_nowhere_is_not_suggested_for_itself() -> None:
    assert "Did you mean" not in unknown_base("sdxl").remedy
    assert "Did you mean 'sdxl'" in unknown_base("sdx1").remedy
