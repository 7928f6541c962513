from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline

from studio.errors import StudioError
from studio.events import silent
from studio.trainers import step_bench
from studio.trainers.step_bench import ARMS, StepBench, bench_steps, make_base

SLEEPER = """
import sys, time, torch
assert "--with_prior_preservation" in sys.argv
steps = next(int(one.split("=")[1]) for one in sys.argv if one.startswith("--max_train_steps"))
weight = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.AdamW([weight])
for _ in range(steps):
    time.sleep(0.05)
    weight.grad = torch.ones(1)
    optimizer.step()
"""


def test_the_base_is_one_that_plain_diffusers_trains(tmp_path: Path) -> None:
    size = make_base(tmp_path, {"block_out_channels": [8, 8, 16]})
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe.vae, AutoencoderKL)
    assert pipe.vae_scale_factor == 4
    assert size == sum(parameter.numel() for parameter in pipe.unet.parameters())


@pytest.mark.slow
def test_what_is_timed_lies_between_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    monkeypatch.setattr(step_bench, "BASES", {"tiny": {"block_out_channels": [8, 8, 16]}})
    found = bench_steps(StepBench(script, steps=3, rounds=1), silent)["tiny"]
    assert 0.05 <= found["diffusers"]["seconds"] < 0.08
    base = found["diffusers"]["seconds"]
    for arm in ARMS[2:]:
        assert found[arm]["to diffusers"] == pytest.approx(found[arm]["seconds"] / base, rel=0.01)


def test_arms_take_turns_in_the_precision_of_the_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[dict[str, Any]] = []
    monkeypatch.setattr(step_bench, "BASES", {"tiny": {"block_out_channels": [8, 8, 16]}})
    monkeypatch.setattr(step_bench, "pick_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(step_bench, "_intervals", lambda order: orders.append(order) or [1.0])
    bench_steps(StepBench(tmp_path / "script.py", rounds=3), silent)
    ours = [n for n, order in enumerate(orders) if "settings" in order]
    assert ours == [2, 4, 6]  # the last, then the second, then the first
    theirs = [order["options"] for order in orders if "options" in order]
    assert all("--mixed_precision=bf16" in options for options in theirs)


def test_a_script_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise RuntimeError('no such option')")
    monkeypatch.setattr(step_bench, "BASES", {"tiny": {"block_out_channels": [8, 8, 16]}})
    with pytest.raises(StudioError, match="no such option"):
        bench_steps(StepBench(script, steps=2, rounds=1), silent)
