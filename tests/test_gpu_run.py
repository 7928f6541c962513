"""`make gpu` says what is missing before it begins; all of it is tried by make gpu GPU_ARGS="--device cpu --tiny"."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import gpu_run
import pytest

DRY = {"device": "cpu", "tiny": True}


def test_what_is_missing_is_named_by_its_package(monkeypatch):
    assert gpu_run.missing() == []
    there, gone = importlib.util.find_spec, ("peft", "PIL", "pytest_timeout", "hypothesis")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in gone else there(name))
    assert gpu_run.missing() == ["peft", "pillow", "pytest-timeout", "hypothesis"]


def test_without_a_device_it_says_how_to_try(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", "--out", str(tmp_path)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_run.main() == 2
    assert "--device cpu --tiny" in capsys.readouterr().out


def test_the_studio_is_found_uninstalled():
    code = "import studio, studio.kernels.blend; print(studio.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/",
        env={"PYTHONPATH": str(gpu_run.linked())},
    )  # fmt: skip
    assert told.stdout.strip() == str(gpu_run.linked() / "studio" / "__init__.py")


def test_a_step_finds_the_studio_where_nothing_is_installed():
    """Without site, so that no editable installation helps; from the root, where `studio` is one folder of six."""
    order = [sys.executable, "-S", "-W", "ignore", "-m", "studio.ui.cli", "--help"]
    ended = subprocess.run(
        order, capture_output=True, text=True, check=False, cwd=gpu_run.ROOT, env=gpu_run.environment()
    )
    assert (ended.returncode, "train-concept" in ended.stdout) == (0, True), ended.stderr


def test_links_of_a_tree_that_was_copied_are_made_anew(monkeypatch, tmp_path):
    for name in ("studio/cli.py", *gpu_run.MAPPED, "build/tree/studio"):
        (tmp_path / name).mkdir(parents=True)
    stale = tmp_path / "build" / "tree" / "studio" / "ui"
    stale.symlink_to(gpu_run.ROOT / "ui")
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    gpu_run.linked()
    assert stale.resolve() == tmp_path / "ui"


@pytest.mark.slow
def test_its_tests_are_collected_without_a_browser(tmp_path):
    (tmp_path / "playwright.py").write_text("raise ImportError('there is no playwright')")
    order = gpu_run.steps(argparse.Namespace(out=tmp_path, **DRY))["tests"]
    env = gpu_run.environment()
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    order.append("--collect-only")
    ended = subprocess.run(order, capture_output=True, text=True, check=False, cwd=gpu_run.ROOT, env=env)
    assert (ended.returncode, "test_gpu_kernels" in ended.stdout) == (0, True), ended.stdout


def test_all_steps_together_end_within_ten_minutes(tmp_path):
    assert set(gpu_run.TIMES) == set(gpu_run.steps(argparse.Namespace(out=tmp_path, **DRY)))
    assert sum(gpu_run.TIMES.values()) <= 570


def test_what_was_done_is_told_even_when_the_machine_ends_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", "--device", "cpu", "--tiny", "--out", str(tmp_path)])
    monkeypatch.setattr(gpu_run, "steps", lambda asked: {"doctor": [], "tests": []})

    def ran(name: str, order: list[str], out: Path, env: dict[str, str], device: str) -> dict[str, object]:
        if name == "tests":
            raise KeyboardInterrupt
        return {"name": name, "code": 0, "seconds": 1.0}

    monkeypatch.setattr(gpu_run, "ran", ran)
    with pytest.raises(KeyboardInterrupt):
        gpu_run.main()
    assert [one["name"] for one in json.loads((tmp_path / "summary.json").read_text())["steps"]] == ["doctor"]


@pytest.mark.parametrize(("device", "code"), [("cpu", 0), ("cuda", 5)])
def test_no_test_at_all_is_well_only_without_a_device(tmp_path, device, code):
    assert gpu_run.ran("tests", [sys.executable, "-c", "raise SystemExit(5)"], tmp_path, {}, device)["code"] == code


@pytest.mark.parametrize(
    ("code", "ended"), [("pass", 0), ("raise SystemExit(3)", 3), ("import time; time.sleep(60)", 124)]
)
def test_a_step_ends_with_its_code_or_after_its_time(monkeypatch, tmp_path, code, ended):
    monkeypatch.setitem(gpu_run.TIMES, "step", 5)
    found = gpu_run.ran("step", [sys.executable, "-c", code], tmp_path, {}, "cuda")
    assert found["code"] == ended
    assert (tmp_path / "step.log").is_file()
