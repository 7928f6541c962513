import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from shutil import copyfile
from types import SimpleNamespace

import diffusers
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from original_layout import sd15_in_one_file, sdxl_in_one_file
from safetensors.torch import save_file

from studio.bases import BaseSource, source_sizes
from studio.errors import StudioError, UsageError
from studio.models import _download, find_base, load_base

HUB = "diffusers.pipelines.pipeline_utils"


@pytest.fixture(scope="module")
def one_file(tiny_sd15, tmp_path_factory) -> Path:
    """`tiny_sd15` in the original layout, with its configurations in the folder of the same name beside it."""
    path = tmp_path_factory.mktemp("files") / "tiny.safetensors"
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd15, safety_checker=None)
    save_file(sd15_in_one_file(pipe), path)
    path.with_suffix("").symlink_to(tiny_sd15)
    return path


def weights(base) -> dict[str, torch.Tensor]:
    parts = {"unet": base.unet, "vae": base.vae} | {str(n): one for n, one in enumerate(base.text_encoders)}
    return {f"{part}.{key}": value for part, model in parts.items() for key, value in model.state_dict().items()}


@pytest.mark.parametrize(("fixture", "size", "step"), [("tiny_sdxl", (32, 32), 16), ("tiny_sd15", (16, 16), 8)])
def test_a_base_is_loaded_frozen_in_float32(fixture, size, step, request):
    source = find_base(str(request.getfixturevalue(fixture)))
    base = load_base(source, "cpu", torch.bfloat16)
    parts = [base.unet, base.vae, *base.text_encoders]
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())
    assert not any(module.training for part in parts for module in part.modules())
    assert base.sizes == source_sizes(source)
    assert (base.native_size, base.sizes.step) == (size, step)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_whatever_draws_is_in_the_name_of_a_bases_weights(part, tiny_sdxl):
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    before = base.weights_id()
    assert before == load_base(find_base(str(tiny_sdxl)), "cpu").weights_id()
    next(iter(getattr(base.pipe, part).parameters())).data.flatten()[0] += 1
    assert base.weights_id() != before


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_base_has_one_name_in_every_process(seed, tiny_sdxl, tmp_path):
    """Of a schedule that leaves things unsaid diffusers notes which, in an order of each process's own."""
    folder = shutil.copytree(tiny_sdxl, tmp_path / "base")
    config = folder / "scheduler" / "scheduler_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({key: said[key] for key in ("_class_name", "prediction_type", "beta_schedule")}))
    code = "import sys; from studio.bases import find_base; from studio.models import load_base\n"
    code += "print(load_base(find_base(sys.argv[1]), 'cpu').weights_id())"
    named = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert named.stdout.strip() == load_base(find_base(str(folder)), "cpu").weights_id()


def test_another_noise_schedule_is_another_base(tiny_sdxl):
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    before = base.weights_id()
    base.pipe.scheduler.register_to_config(prediction_type="sample")
    assert base.weights_id() != before


def test_sdxl_text_is_both_encoders_penultimate_layers_and_the_second_ones_pooled(tiny_sdxl):
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    texts = ["a red cat", "a dog at night"]
    states = base.encode(texts)
    hidden, pooled = [], None
    for tokenizer, encoder in zip(base.tokenizers, base.text_encoders, strict=True):
        ids = tokenizer(texts, padding="max_length", max_length=24, truncation=True, return_tensors="pt").input_ids
        said = encoder(ids, output_hidden_states=True)
        hidden.append(said.hidden_states[-2])
        pooled = said[0]
    assert torch.equal(states.embeds, torch.cat(hidden, dim=-1))
    time_ids = base.time_ids((30, 40), (1, 2), (32, 16))
    assert pooled is not None
    assert states.pooled is not None
    assert time_ids is not None
    assert torch.equal(states.pooled, pooled)
    assert time_ids.tolist() == [30, 40, 1, 2, 32, 16]


def test_sd15_text_is_the_last_layer_and_there_is_nothing_else(tiny_sd15):
    base = load_base(find_base(str(tiny_sd15)), "cpu")
    states = base.encode(["a red cat"])
    ids = base.tokenizers[0](["a red cat"], padding="max_length", max_length=24, return_tensors="pt").input_ids
    assert torch.equal(states.embeds, base.text_encoders[0](ids)[0])
    assert states.pooled is None
    assert base.time_ids((16, 16), (0, 0), (16, 16)) is None


def test_one_original_file_holds_the_same_model_as_the_folder(one_file, tiny_sd15):
    single = weights(load_base(find_base(str(one_file)), "cpu"))
    folder = weights(load_base(find_base(str(tiny_sd15)), "cpu"))
    assert single.keys() == folder.keys()
    assert all(torch.equal(single[key], folder[key]) for key in folder)


def test_one_original_sdxl_file_holds_the_same_model_as_the_folder(tiny_sdxl, tiny_sd15, tmp_path):
    vae = diffusers.AutoencoderKL.from_pretrained(tiny_sd15 / "vae")  # the layout knows no AutoencoderTiny
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, vae=vae)
    pipe.save_pretrained(tmp_path / "tiny")
    save_file(sdxl_in_one_file(pipe), tmp_path / "tiny.safetensors")
    single = load_base(find_base(str(tmp_path / "tiny.safetensors")), "cpu")
    folder = load_base(find_base(str(tmp_path / "tiny")), "cpu")
    assert single.family == "sdxl"
    assert weights(single).keys() == weights(folder).keys()
    assert all(torch.equal(weights(single)[key], value) for key, value in weights(folder).items())


def test_one_file_says_that_it_predicts_velocity(one_file, tmp_path):
    from safetensors.torch import load_file

    marked = tmp_path / "marked.safetensors"
    save_file(load_file(one_file) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, marked)
    marked.with_suffix("").symlink_to(one_file.with_suffix(""))
    config = load_base(find_base(str(marked)), "cpu").scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


def test_one_file_without_configurations_tells_how_to_fetch_them(one_file, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.symlink_to(one_file)
    with pytest.raises(StudioError, match="tokenizer") as refusal:
        load_base(find_base(str(alone)), "cpu")
    assert f"--local-dir {tmp_path / 'alone'}" in refusal.value.remedy


def test_a_folder_with_half_precision_files_alone_is_read(tiny_sd15, tmp_path):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd15, safety_checker=None)
    pipe.to(dtype=torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert load_base(find_base(str(tmp_path)), "cpu").unet.dtype == torch.float32


def hub(monkeypatch, base: Path, folder: Path, files: list[str]) -> list[str]:
    """A hub that has `files`, and the folder for what is fetched, as for `base`; returns what will be asked for."""
    copyfile(base / "model_index.json", folder / "model_index.json")
    asked: list[str] = []
    listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files], sha="0")

    def fetch(*_, allow_patterns, ignore_patterns, **options):
        asked.extend(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return folder

    monkeypatch.setattr(f"{HUB}._resolve_revision", lambda *_, **options: None)
    monkeypatch.setattr(f"{HUB}.model_info", lambda *_, **options: listed)
    monkeypatch.setattr(f"{HUB}.hf_hub_download", lambda *_, **options: str(folder / "model_index.json"))
    monkeypatch.setattr(f"{HUB}.DiffusionPipeline._get_signature_types", dict)
    monkeypatch.setattr(f"{HUB}.snapshot_download", fetch)
    return asked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mark", ["", ".fp16"])
def test_a_hub_base_in_one_precision_is_fetched_in_that(monkeypatch, tiny_sd15, tmp_path, dtype, mark):
    """And nothing that looks at finished pictures, which may be there as a pickle alone."""
    parts = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    files = [f"{part}{mark}.safetensors" for part in parts]
    others = ["model_index.json", "unet/config.json", "safety_checker/config.json", "safety_checker/pytorch_model.bin"]
    asked = hub(monkeypatch, tiny_sd15, tmp_path, [*files, *others])
    _download(BaseSource("owner/model", "owner/model", "hub", "sd15"), dtype)
    assert sorted(one for one in asked if "." in one and not one.endswith(".json")) == sorted(files)
    assert not any(one.startswith("safety_checker") for one in asked)


def test_a_hub_base_of_pickles_and_a_lost_network_are_told_apart(monkeypatch, tiny_sd15, tmp_path):
    source = BaseSource("owner/model", "owner/model", "hub", "sd15")
    hub(monkeypatch, tiny_sd15, tmp_path, ["model_index.json", "unet/diffusion_pytorch_model.bin"])
    with pytest.raises(StudioError, match="safetensors") as refusal:
        _download(source, torch.float16)
    assert "Check the network" not in refusal.value.remedy

    def lost(*_, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(f"{HUB}.hf_hub_download", lost)
    with pytest.raises(StudioError, match="cannot be fetched: no route") as refusal:
        _download(source, torch.float16)
    assert "Check the network" in refusal.value.remedy


def test_torn_weights_are_a_clear_failure(tiny_sd15, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_sd15, broken)
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StudioError, match="broken"):
        load_base(find_base(str(broken)), "cpu")


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cpu:", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(device, tiny_sd15):
    with pytest.raises(UsageError, match="no device"):
        load_base(find_base(str(tiny_sd15)), device)


def test_offloading_from_a_cpu_is_refused(tiny_sd15):
    with pytest.raises(UsageError, match="Offloading"):
        load_base(find_base(str(tiny_sd15)), "cpu", offload=True)


def test_words_beyond_the_limit_are_named(tiny_sdxl):
    base = load_base(find_base(str(tiny_sdxl)), "cpu")  # 24 tokens: begin, 22 words, end
    assert base.unread("cat " * 22) == ""
    assert base.unread("cat " * 22 + "dog robot") == "dog robot"
    base.tokenizers[0].add_tokens(["toy0", "toy0_1", "toy0_2"])
    assert base.unread("cat " * 19 + "toy0") == ""
    assert base.unread("cat " * 20 + "toy0 dog") == "toy0_2 dog"  # its three rows are read as three words
