import pytest
import torch

from studio.kernels.paths import kernel_paths, operation_paths

CPU = torch.device("cpu")


def usable(name: str) -> bool:
    (path,) = (path for path in kernel_paths(CPU, torch.float32) if path.name == name)
    return path.usable


def test_plain_attention_is_usable_everywhere_and_cudnn_only_on_cuda():
    assert usable("sdpa math")
    assert not usable("sdpa cudnn")


def test_triton_counts_on_a_cpu_only_when_interpreted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("studio.kernels.paths.version", lambda _: "3.9.0")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not usable("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert usable("triton")


def test_xformers_is_of_no_use_without_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("studio.kernels.paths.version", lambda _: "0.0.35")
    assert not usable("xformers")


def test_every_operation_says_how_it_is_computed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("studio.kernels.paths.version", lambda _: "3.9.0")
    here, there = operation_paths(CPU), operation_paths(torch.device("cuda"))
    assert here.keys() == there.keys()
    assert not any("Triton" in way for way in here.values())
    assert sum("Triton" in way for way in there.values()) == 3


@pytest.mark.gpu
def test_flash_attention_is_usable_on_a_gpu(cuda: str):
    paths = kernel_paths(torch.device(cuda), torch.bfloat16)
    assert next(path for path in paths if path.name == "sdpa flash").usable
