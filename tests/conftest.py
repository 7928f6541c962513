"""What every test shares: no hub, a state folder of its own, one thread, and the command line as a function."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
if "-m" not in sys.argv or "gpu" not in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: its kernels run on the CPU
for _variable in ("COLUMNS", "FORCE_COLOR", "STUDIO_HOME"):
    os.environ.pop(_variable, None)

from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from soaking import SOAK  # noqa: E402

from studio.home import Home  # noqa: E402

pytest_plugins = ["fixtures_models", "fixtures_text", "composing"]


def pytest_configure(config: pytest.Config) -> None:
    """Everything but what is marked `gpu` is tested on the CPU, where results are exact."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said on its two streams."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty state folder, which `$STUDIO_HOME` names."""
    root = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("STUDIO_HOME", str(root))
    return Home(root)


@pytest.fixture
def homes(tmp_path: Path) -> list[Home]:
    """Two empty state folders, for what shall come out the same."""
    return [Home(tmp_path / name) for name in "ab"]


@pytest.fixture(autouse=True)
def verified_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A written concept is verified in this process: a fresh one, as in tests/test_verify.py, takes seconds."""
    from studio.trainers import verify

    monkeypatch.setattr(verify, "in_fresh_process", verify.found_wrong)


@pytest.fixture(autouse=True)
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers is not asked to read back every LoRA that a test trains; tests/test_dreambooth.py asks it."""
    from studio.trainers import lora

    if not SOAK:
        monkeypatch.setattr(lora, "_verify", lambda *given: None)


@pytest.fixture(autouse=True)
def unestimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training begins without counting what a step takes: that is a second each, and tests/test_estimate.py does."""
    from studio.trainers import estimate

    monkeypatch.setattr(estimate, "activation_bytes", lambda *given: 0)


@pytest.fixture
def cuda() -> str:
    """The device of a test marked `gpu`, which is skipped where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.fixture
def run_studio(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process: `run_studio("library", "list").out`."""
    from studio.ui.cli import main

    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return Outcome(code, said.out, said.err)

    return run
