import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from studio.doctor import Check, examine, works
from studio.home import Home

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture
def embedded(tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole base in the place of the embedded one."""
    monkeypatch.setattr("studio.bases.embedded_folder", lambda: tiny_sdxl)
    return tiny_sdxl


def found(home: Home) -> dict[str, Check]:
    return {check.name: check for check in examine(home)}


def test_a_sound_installation_works(home: Home, embedded: Path):
    checks = examine(home)
    assert works(checks), [check for check in checks if check.status == "fail"]
    by_name = {check.name: check for check in checks}
    assert [check.name for check in checks].count("gradio") == 1
    assert by_name["torch"].detail == version("torch")
    assert by_name["peft"].detail == version("peft")
    assert by_name["pipelines"].status == by_name["embedded base"].status == by_name["disk"].status == "ok"
    assert "sdpa math" in by_name


def test_what_is_not_ok_has_a_remedy(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("studio.bases.embedded_folder", lambda: tmp_path / "nowhere")
    checks = examine(home)
    assert not works(checks)
    assert all(check.remedy for check in checks if check.status != "ok")


@pytest.mark.parametrize(
    ("place", "check"),
    [
        ("picturebook/unet/diffusion_pytorch_model.safetensors", "embedded base"),
        ("judges/A.safetensors", "judge A"),
        ("judges/B.safetensors", "judge B"),
        ("clip/open_clip_model.safetensors", "embedded CLIP"),
    ],
)
def test_a_cut_weight_file_that_comes_with_the_studio_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, check: str
):
    shutil.copytree(ASSETS, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("studio.doctor.files", lambda _: tmp_path)
    monkeypatch.setattr("studio.bases.files", lambda _: tmp_path)
    assert found(home)[check].status == "ok"
    for broken in (lambda: (tmp_path / place).write_bytes(b"\x08\0\0\0"), (tmp_path / place).unlink):
        broken()
        finding = found(home)[check]
        assert finding.status == "fail"
        assert str((tmp_path / place).parent) in finding.detail
        assert "Install the studio again" in finding.remedy


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "tokenizer_2"])
def test_a_missing_part_of_the_embedded_base_is_named(home: Home, embedded: Path, tmp_path: Path, monkeypatch, part):
    shutil.copytree(embedded, tmp_path / "base")
    monkeypatch.setattr("studio.bases.embedded_folder", lambda: tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / part)
    finding = found(home)["embedded base"]
    assert (finding.status, part in finding.detail) == ("fail", True)
    assert "Install the studio again" in finding.remedy


def test_a_file_in_the_place_of_the_state_folder_fails(tmp_path: Path):
    (tmp_path / "home").touch()
    assert found(Home(tmp_path / "home"))["state folder"].status == "fail"


@pytest.mark.parametrize(("free", "status"), [(2**40, "ok"), (2**30, "warn"), (2**20, "fail")])
def test_a_disk_that_runs_full_is_told(home: Home, monkeypatch: pytest.MonkeyPatch, free: int, status: str):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2**40, 0, free))
    assert found(home)["disk"].status == status


def test_a_damaged_concept_is_a_warning(home: Home):
    (home.library / "milo").mkdir(parents=True)
    (home.library / "milo/concept.json").write_text("{")
    assert found(home)["concept milo"].status == "warn"


def test_a_missing_and_an_old_package_are_told_apart(home: Home, monkeypatch: pytest.MonkeyPatch):
    needs = ["no-such-package>=1", "rich>=999", "typer>=0.1", "ruff>=999; extra == 'dev'"]
    monkeypatch.setattr("studio.doctor.requires", lambda _: needs)
    checks = found(home)
    assert checks["no-such-package"].status == "fail"
    assert checks["no-such-package"].remedy == "pip install 'no-such-package>=1'"
    assert (checks["rich"].status, checks["typer"].status) == ("warn", "ok")
    assert "ruff" not in checks


def in_a_process(code: str, site: Path) -> str:
    """What `code` prints in a process that finds the packages in `site` first."""
    env = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False).stdout


@pytest.mark.parametrize("error", ["ImportError('libtorch.so: cannot open')", "OSError('WinError 126')"])
def test_a_torch_that_does_not_import_is_a_finding(tmp_path: Path, error: str):
    (tmp_path / "torch.py").write_text(f"raise {error}")
    code = "from studio.ui.cli import main; main(['doctor', '--json'])"
    report = json.loads(in_a_process(code, tmp_path))
    checks = {check["name"]: check for check in report["checks"]}
    assert not report["works"]
    assert checks["device"]["status"] == "fail"
    assert checks["device"]["detail"] == error.replace("('", ": ").rstrip("')")
    assert checks["state folder"]["status"] == "ok"


def test_without_packages_the_doctor_still_looks_at_the_rest(tmp_path: Path):
    code = "import sys; sys.modules |= dict.fromkeys(('psutil', 'safetensors'))"
    code += "\nfrom studio.ui.cli import main; main(['doctor', '--json'])"
    checks = {check["name"]: check for check in json.loads(in_a_process(code, tmp_path))["checks"]}
    assert "psutil" in checks["device"]["detail"]
    assert "safetensors" in checks["judge A"]["detail"]
    assert checks["state folder"]["status"] == "ok"


def test_a_torchvision_of_another_torch_is_named_with_its_remedy(tmp_path: Path):
    (tmp_path / "torchvision.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision::nms')(lambda *boxes: boxes)\n"
    )
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0+other\n"
    (tmp_path / "torchvision-0.28.0.dist-info/METADATA").write_text(metadata)
    code = "from studio.doctor import _torchvision as look; (check,) = look(); print(check)"
    said = in_a_process(code, tmp_path)
    assert "status='warn'" in said
    assert f"torchvision 0.28.0+other beside torch {version('torch')}" in said
    assert "pip uninstall torchvision" in said


def test_the_command_prints_every_check_and_ends_with_the_verdict(run_studio: Callable, embedded: Path):
    said = run_studio("doctor")
    assert said.code == 0
    assert said.out.splitlines()[-1] == "The studio can work here."
    assert "embedded base" in said.out


def test_the_report_as_json(run_studio: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "studio.doctor.examine", lambda _: [Check("torch", "fail", "not installed", "pip install torch")]
    )
    said = run_studio("doctor", "--json")
    assert said.code == 1
    assert json.loads(said.out) == {
        "works": False,
        "checks": [{"name": "torch", "status": "fail", "detail": "not installed", "remedy": "pip install torch"}],
    }
