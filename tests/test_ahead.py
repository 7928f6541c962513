"""Kernels are compiled for devices that need not be there, in a process without the interpreter."""

import json
import os
import subprocess
import sys

import pytest
from soaking import SOAK

from studio.kernels import ahead
from studio.kernels.triton_support import triton


@pytest.mark.slow
@pytest.mark.skipif(triton is None, reason="Triton is not installed")
def test_launches_compile_for_both_architectures_and_spill_nothing():
    every = 1 if SOAK else 5  # odd, so that both architectures are among them
    code = f"import sys; from studio.kernels import ahead; sys.exit(ahead.main(True, {every}))"
    order = [sys.executable, "-W", "ignore", "-c", code]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(order, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout)
    launched = {one["name"] for one in found}
    assert launched == {"columns", "columns, dq", "columns, dk dv", "mass", "widen", "blend", "kronecker"}
    assert {(one["architecture"], one["dtype"]) for one in found} == {
        (80, "bf16"),
        (80, "fp16"),
        (90, "bf16"),
        (90, "fp16"),
    }
    assert all(one["registers"] > 0 and one["spilled"] == 0 and one["shared"] < 160_000 for one in found)


def test_without_triton_there_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(ahead, "triton", None)
    assert ahead.main(as_json=False) == 1
    assert "not installed" in capsys.readouterr().out
