import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_helpers import TINY, draw_pictures

from studio.home import Home
from studio.library import Library

Run = Callable[..., Any]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "pictures")


@pytest.fixture
def config(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> Path:
    """A recipe file with everything in it."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in TINY.items()]
    lines += [f"base = {json.dumps(str(tiny_sdxl))}", 'pictures = "pictures"', "sample_prompts = []"]
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_recipe_file_alone_is_enough(run_studio: Run, config: Path, home: Home) -> None:
    ended = run_studio("train-concept", "--config", config, "--json")
    report = json.loads(ended.out)
    assert ended.code == 0
    assert (report["name"], report["phrase"], report["recipe"]["steps"]) == ("milo", "sks cat", 6)
    assert Path(report["folder"]) == home.library / "milo"
    for shown in ("0.png", "40 x 32", "a sks cat", "3 class pictures", "parameters"):
        assert shown in ended.err


def test_further_concepts_are_given_by_name_class_and_path(
    run_studio: Run, config: Path, home: Home, tmp_path: Path
) -> None:
    odd = draw_pictures(tmp_path / "re=x:es", 2)
    ended = run_studio("train-concept", "--config", config, "--steps", "1", "--with", f"rex=dog:{odd}", "--json")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert [one["phrase"] for one in (report, *report["others"])] == ["sks cat", "ohwx dog"]
    assert report["recipe"]["others"][0]["pictures"] == str(odd)
    for shown in ("milo: 0.png", "rex: 1.png", "a ohwx dog", "5 pictures, 6 class pictures"):
        assert shown in ended.err
    assert sorted(one.name for one in home.library.iterdir()) == ["milo", "rex"]
    assert run_studio("library", "remove", "milo", "--yes").code == 0
    assert [one.name for one in Library(home).concepts()] == ["rex"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "lokr"], "LoKr of rank 2 on"),
        (["--method", "loha"], "LoHa of rank 2 on"),
        (["--init", "pissa"], "begun as pissa (of rank 4 in its file)"),
    ],
)
def test_methods_and_inits_are_chosen_by_options(run_studio: Run, config: Path, options: list[str], said: str) -> None:
    ended = run_studio("train-concept", "--config", config, "--steps", "1", *options, "--json")
    assert ended.code == 0
    assert said in " ".join(ended.err.split())
    report = json.loads(ended.out)
    again = Path(report["folder"]) / "recipe.toml"
    assert run_studio("train-concept", "--config", again, "--name", "again").code == 0


@pytest.mark.parametrize(
    ("method", "trial"),
    [
        ("lora", 'studio generate "a <milo>" --concept milo'),
        ("b-lora", 'studio stylize "a cat in <milo>" --style milo'),
    ],
)
def test_a_training_ends_with_the_command_that_draws(run_studio: Run, config: Path, method: str, trial: str) -> None:
    ended = run_studio("train-concept", "--config", config, "--steps", "1", "--method", method)
    assert ended.out.splitlines()[-1] == f"Try it: {trial}"


def test_a_name_that_is_taken_is_refused_before_anything(run_studio: Run, config: Path, home: Home) -> None:
    assert run_studio("train-concept", "--config", config, "--steps", "1").code == 0
    again = run_studio("train-concept", "--config", config)
    assert again.code == 2
    assert "a concept 'milo' already" in again.err
    assert "replace it with --overwrite, or remove it: studio library remove milo" in again.err
    other = run_studio("train-concept", "--config", config, "--name", "Milo", "--overwrite")
    assert (other.code, "studio library remove milo" in other.err) == (2, True)
    assert run_studio("train-concept", "--config", config, "--steps", "1", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--steps", "-3"], "steps is -3; it must be at least 1"),
        (["--rank", "0"], "rank is 0; it must be at least 1"),
        (["--method", "krona", "--factors", "64"], "--factors 64 are no two sizes"),
        (["--method", "loha", "--init", "pissa"], "init says nothing to the method loha"),
        (["--init", "orthogonal", "--rank", "3"], "init orthogonal takes an even rank, and rank is 3"),
        (["--factors", "4x4"], "factors says nothing to the method lora"),
        (["--name", "../up"], "'../up' cannot be used"),
        (["--name", "n" * 300], "300 characters"),
        (["--base", "picturbook"], "no base model 'picturbook'"),
        (["--preset", "fast"], "no preset 'fast'"),
        (["--resume"], "no interrupted training"),
        (["--with", "rex"], "--with rex says no name, class and path"),
        (["--with", "rex=dog:"], "--with rex=dog: says no name, class and path"),
        (["--with", "milo=dog:elsewhere"], "two concepts of this training have the name 'milo'"),
        (["--with", "rex=dog:nowhere"], "There is no folder or picture"),
    ],
)
def test_wrong_usage_is_named_and_leaves_nothing(
    run_studio: Run, config: Path, home: Home, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    ended = run_studio("train-concept", "--config", config, *options)
    assert ended.code == 2
    assert said in ended.err
    assert not home.library.exists() or list(home.library.iterdir()) == []


def test_an_unknown_key_in_the_file_is_named(run_studio: Run, config: Path) -> None:
    config.write_text(config.read_text(encoding="utf-8") + "\nlearning_rat = 1", encoding="utf-8")
    ended = run_studio("train-concept", "--config", config)
    assert ended.code == 2
    assert "did you mean 'learning_rate'" in ended.err


def test_a_missing_folder_and_an_empty_one(run_studio: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, said in (("nowhere", "no folder or picture"), ("empty", "holds no pictures")):
        ended = run_studio("train-concept", tmp_path / folder, "--config", config)
        assert ended.code == 2
        assert said in ended.err


def test_a_home_that_cannot_be_written(run_studio: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # a file where a folder is needed: even root cannot write there
    ended = run_studio("train-concept", "--config", config, "--home", tmp_path / "file")
    assert ended.code == 1
    assert "Cannot write in" in ended.err


def test_stopping_and_going_on_by_name_alone(
    run_studio: Run, config: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from studio.trainers.training import Training

    step = Training.take_step

    def interrupted(self: Training) -> float:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "take_step", interrupted)
        stopped = run_studio("train-concept", "--config", config)
    assert stopped.code == 130
    assert "studio train-concept --name milo --resume" in stopped.err
    assert Library(home).concepts() == []
    resumed = run_studio("train-concept", "--name", "milo", "--resume")
    assert resumed.code == 0
    assert "Going on after step 3 of 6" in resumed.err
    assert [concept.name for concept in Library(home).concepts()] == ["milo"]


def test_a_resolution_that_does_not_fit_the_base_is_refused_with_the_nearest(run_studio: Run, config: Path) -> None:
    ended = run_studio("train-concept", "--config", config, "--resolution", "30")
    assert ended.code == 2
    assert "needs a multiple of 16" in ended.err
    assert "--resolution 32" in ended.err


def test_a_clip_without_a_step_to_read_is_refused(run_studio, pictures):
    ended = run_studio("train-concept", pictures, "--name", "milo", "--class", "cat", "--clip", "anything")
    assert ended.code == 2
    assert "validate_every" in ended.err
