"""`make gpu` says what is missing before it begins; all of it is tried by make gpu GPU_ARGS="--device cpu --tiny"."""

import importlib.util
import subprocess
import sys

import gpu_run
import pytest


def test_what_is_missing_is_named_by_its_package(monkeypatch):
    assert gpu_run.missing() == []
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("peft", "PIL") else there(name))
    assert gpu_run.missing() == ["peft", "pillow"]


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


@pytest.mark.parametrize(
    ("code", "ended"), [("pass", 0), ("raise SystemExit(3)", 3), ("import time; time.sleep(60)", 124)]
)
def test_a_step_ends_with_its_code_or_after_its_time(monkeypatch, tmp_path, code, ended):
    monkeypatch.setitem(gpu_run.TIMES, "step", 5)
    found = gpu_run.ran("step", [sys.executable, "-c", code], tmp_path, {})
    assert found["code"] == ended
    assert (tmp_path / "step.log").is_file()
