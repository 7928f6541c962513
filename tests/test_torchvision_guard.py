"""Each case runs in a process of its own: operators cannot be undeclared."""

import os
import subprocess
import sys
from pathlib import Path

# As the real package does: the compiled library does not load, then a fake is registered for an operator of it.
MISMATCHED = """
import torch
from torchvision import ops
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
"""
HEALTHY = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.impl("nms", lambda dets, scores, iou_threshold: dets + 1, "CompositeExplicitAutograd")
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
"""
BROKEN = "raise RuntimeError('something else is wrong')"

GUARDED = "from studio import torchvision_guard as guard; print(guard.install(), guard.install())\n"


def run(code: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | ({"PYTHONPATH": str(site)} if site else {})
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


def fake_torchvision(tmp_path: Path, text: str) -> Path:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(text)
    (package / "ops.py").write_text("loaded = True\n")
    return tmp_path


def test_the_fake_fails_as_the_real_one_does(tmp_path: Path):
    ended = run("import torchvision", fake_torchvision(tmp_path, MISMATCHED))
    assert "RuntimeError: operator torchvision::nms does not exist" in ended.stderr


def test_a_mismatched_torchvision_imports_behind_the_guard(tmp_path: Path):
    code = GUARDED + "import torchvision; print(torchvision.ops.loaded)"
    ended = run(code, fake_torchvision(tmp_path, MISMATCHED))
    assert ended.stdout.split() == ["True", "True", "True"], ended.stderr


def test_a_healthy_torchvision_keeps_its_own_operators(tmp_path: Path):
    code = GUARDED + "import torch; print(torch.ops.torchvision.nms(torch.zeros(1), torch.zeros(1), 0.5).item())"
    ended = run(code, fake_torchvision(tmp_path, HEALTHY))
    assert ended.stdout.split() == ["False", "False", "1.0"], ended.stderr


def test_another_fault_stays_what_it_is(tmp_path: Path):
    ended = run(GUARDED + "import torchvision", fake_torchvision(tmp_path, BROKEN))
    assert ended.stdout.split() == ["False", "False"]
    assert "something else is wrong" in ended.stderr


def test_without_torchvision_nothing_is_declared(tmp_path: Path):
    blocked = "import sys; sys.modules['torchvision'] = None\n"
    ended = run(blocked + GUARDED + "import torch; print(hasattr(torch.ops.torchvision, 'nms'))")
    assert ended.stdout.split() == ["False", "False", "False"], ended.stderr


def test_importing_the_studio_is_enough(tmp_path: Path):
    """A library that imports torchvision, here open_clip, may come first of all."""
    site = fake_torchvision(tmp_path, MISMATCHED)
    (site / "open_clip.py").write_text("import torchvision; loaded = torchvision.ops.loaded")
    assert "does not exist" in run("import open_clip", site).stderr
    assert run("import studio, open_clip; print(open_clip.loaded)", site).stdout.split() == ["True"]


def test_the_studio_alone_imports_neither():
    code = "import sys, studio; print({'torch', 'torchvision'} & set(sys.modules))"
    assert run(code).stdout.split() == ["set()"]
