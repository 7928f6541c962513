import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from studio import models
from studio.concepts import Concept, write_concept
from studio.jobs import JobStore


@pytest.fixture
def library(home, tiny_sdxl, tiny_loras):
    """Put concepts into the library's folder: `add("milo", lora=0, base=..., family=...)`."""

    def add(name: str, lora: int = 0, base: Path | str = tiny_sdxl, family: str = "sdxl") -> Path:
        folder = home.library / name
        folder.mkdir(parents=True)
        shutil.copy(tiny_loras[lora], folder / "adapter.safetensors")
        write_concept(Concept(name, "sks", "cat", str(base), family, "lora", folder))
        return folder

    return add


@pytest.fixture
def no_loading(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(models, "load_base", refuse)


def test_concepts_by_option_and_by_prompt_bring_their_base(run_studio, library, tiny_sdxl, tmp_path):
    library("milo")
    library("rex", lora=1)
    ended = run_studio(
        "generate", "<milo> and <rex>", "--concept", "rex=0.5", "--steps", 2, "--seed", 9, "--count", 2,
        "--out", tmp_path / "out", "--device", "cpu", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert {one["name"]: one["strength"] for one in report["concepts"]} == {"rex": 0.5, "milo": 1.0}
    assert (report["base"], report["width"], report["scheduler"]) == (str(tiny_sdxl), 32, "default")
    assert [one["seed"] for one in report["pictures"]] == [9, 10]
    for one in report["pictures"]:
        assert Image.open(one["path"]).size == (32, 32)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_without_json_the_paths_are_printed(run_studio, home, tiny_sd15):
    ended = run_studio("generate", "a cat", "--base", tiny_sd15, "--steps", 1, "--device", "cpu")
    assert ended.code == 0, ended.err
    path = Path(ended.out.strip())
    assert path.is_file()
    assert path.is_relative_to(home.outputs)


def test_a_base_that_is_named_from_here_is_written_down_for_every_working_directory(
    run_studio, home, tiny_sdxl, monkeypatch
):
    monkeypatch.chdir(tiny_sdxl.parent)
    ended = run_studio("generate", "a cat", "--base", f"./{tiny_sdxl.name}", "--steps", 1, "--device", "cpu")
    assert ended.code == 0, ended.err
    assert JobStore(home).jobs()[0].arguments["base"] == str(tiny_sdxl)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a cat", "--base", "sdx"], "no base model 'sdx'"),
        (["a cat", "--steps", "0"], "steps is 0"),
        (["a cat", "--steps", "-5"], "steps is -5"),
        (["a cat", "--scheduler", "eular"], "no scheduler 'eular'"),
        (["a cat", "--width", "33"], "width 33 is not a multiple of 16"),
        (["a cat", "--guidance", "-1"], "guidance is -1"),
        (["a cat", "--compile", "--offload"], "--compile and --offload do not go together"),
        (["a cat", "--concept", "mil"], "no concept 'mil'"),
        (["a cat", "--concept", "milo=strong"], "'strong' is no strength"),
        (["a cat", "--concept", "milo=nan"], "'nan' is no strength"),
        (["a cat", "--concept", "milo", "--concept", "milo=2"], "given twice"),
        (["a <mill>"], "no concept 'mill'"),
        (["a <lora:milo:0.8>"], "--concept NAME=STRENGTH"),
        (["a cat", "--negative", "<milo>"], "prompt names <milo>"),
        (["a cat", "--concept", "../milo"], "cannot be used as a file name"),
    ],
)
def test_wrong_usage_is_refused_before_the_base_is_loaded(run_studio, library, no_loading, tiny_sdxl, arguments, said):
    library("milo")
    base = [] if "--base" in arguments else ["--base", tiny_sdxl]
    ended = run_studio("generate", *arguments, *base)
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.parametrize(
    ("prompt", "strength", "told"),
    [("a cat in the snow", 1, True), ("a milo", 1, True), ("a <milo in the snow", 1, True), ("a <milo>", 1, False),
     ("A SKS cat", 1, False), ("a cat in the snow", 0, False)],
)  # fmt: skip
def test_a_concept_that_the_prompt_does_not_call_is_told(run_studio, library, tmp_path, prompt, strength, told):
    library("milo")
    ended = run_studio(
        "generate", prompt, "--concept", f"milo={strength}", "--steps", 1, "--device", "cpu", "--out", tmp_path / "out"
    )
    assert ended.code == 0, ended.err
    assert ("Note: Nothing in the prompt calls milo. Write <milo>" in ended.err) == told


def test_a_picture_without_a_prompt_is_a_job_with_a_title(run_studio, home, tiny_sdxl):
    ended = run_studio("generate", "", "--base", tiny_sdxl, "--steps", 1, "--device", "cpu")
    assert ended.code == 0, ended.err
    (job,) = JobStore(home).jobs()
    assert job.title == "no prompt"


def test_near_names_are_offered(run_studio, library, no_loading):
    library("milo")
    assert "Did you mean 'milo'?" in run_studio("generate", "a <mlo>").err


def test_a_base_of_another_family_is_refused_with_both_names(run_studio, library, no_loading, tiny_sd15):
    library("rex", lora=1)
    ended = run_studio("generate", "<rex>", "--base", tiny_sd15)
    assert ended.code == 2
    assert "Stable Diffusion XL" in ended.err
    assert "Stable Diffusion 1.5" in ended.err


def test_concepts_of_different_bases_need_a_choice(run_studio, library, no_loading, tiny_sd15):
    library("milo")
    library("rex", base=tiny_sd15)
    ended = run_studio("generate", "<milo> and <rex>")
    assert ended.code == 2
    assert "--base" in ended.err


def test_an_unwritable_output_is_refused_before_the_base_is_loaded(run_studio, no_loading, tiny_sdxl, tmp_path):
    (tmp_path / "file").touch()
    assert run_studio("generate", "a cat", "--base", tiny_sdxl, "--out", tmp_path / "file").code == 2
    assert run_studio("generate", "a cat", "--base", tiny_sdxl, "--out", tmp_path / "file" / "below").code == 1


def test_offloading_from_a_cpu_is_refused(run_studio, tiny_sdxl):
    ended = run_studio("generate", "a cat", "--base", tiny_sdxl, "--offload", "--device", "cpu")
    assert ended.code == 2
    assert "Offloading" in ended.err
