"""What a training step takes beside diffusers' own example script, train_dreambooth_lora_sdxl.py, in turns.

Both train a LoRA of rank 4 on the attention of the same SDXL base, with an AutoencoderKL, one picture and one class
picture a step, in processes of their own and in the precision that the studio chooses. Timed is what lies between one
step of AdamW and the next.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from studio.devices import pick_device, pick_dtype
from studio.errors import StudioError
from studio.events import Emit, Phase, Step
from studio.pipelines.random_bases import HALF_WIDE, random_pipe
from studio.trainers.precision import mixed_precision

BASES: dict[str, dict[str, Any]] = {"a UNet of picturebook's size": {}, "a UNet half as wide as SDXL's": HALF_WIDE}
ARMS = ("diffusers", "diffusers, latents cached", "studio")
SIDE, SKIPPED = 96, 2  # pixels; intervals at the start that are not counted
_CLOCK = """
import json, runpy, sys, time
import studio
import torch
order = json.loads(sys.argv[1])
ticks, step = [], torch.optim.AdamW.step
def timed(self, *given, **named):
    done = step(self, *given, **named)
    ticks.append(time.perf_counter())
    return done
torch.optim.AdamW.step = timed
if order.get("cached"):
    from diffusers import AutoencoderKL
    encode, known = AutoencoderKL.encode, {}
    def remembered(self, pixels):
        key = float(pixels.double().sum())
        if key not in known:
            known[key] = encode(self, pixels)
        return known[key]
    AutoencoderKL.encode = remembered
if "script" in order:
    sys.argv = [order["script"], *order["options"]]
    runpy.run_path(order["script"], run_name="__main__")
else:
    from pathlib import Path
    from studio.home import Home
    from studio.trainers.dreambooth import train_concept
    from studio.trainers.planning import plan_recipe
    home = Home(Path(order["home"]))
    train_concept(plan_recipe(order["settings"], None, home), home, overwrite=True)
print("ticks", json.dumps(ticks))
"""


@dataclass(frozen=True)
class StepBench:
    """What is measured: `steps` of each arm in each of `rounds` turns, with diffusers' `script`."""

    script: Path
    steps: int = 12
    rounds: int = 3


def bench_steps(bench: StepBench, emit: Emit) -> dict[str, Any]:
    """Seconds a step of every arm, by base, and its ratio to diffusers' script as shipped, the median of all turns.

    Raises StudioError with the last words of an arm that failed.
    """
    report: dict[str, Any] = {}
    for name, changes in BASES.items():
        emit(Phase(name, bench.rounds * len(ARMS)))
        with TemporaryDirectory() as folder:
            place = Path(folder)
            size = make_base(place / "base", changes)
            _draw(place / "pictures", 4)
            _draw(place / "class", 2)
            seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
            for turn in range(bench.rounds):
                first = turn % len(ARMS)
                for number, arm in enumerate((*ARMS[first:], *ARMS[:first]), 1):
                    seconds[arm].append(statistics.median(_intervals(_order(arm, place, bench))))
                    emit(Step(turn * len(ARMS) + number, bench.rounds * len(ARMS)))
        report[name] = {"UNet, million parameters": round(size / 1e6, 1)} | {
            arm: {"seconds": round(statistics.median(found), 4)} | {
                f"to {other}": round(statistics.median(a / b for a, b in zip(found, seconds[other], strict=True)), 3)
                for other in ARMS[:2] if arm not in ARMS[:2]
            }
            for arm, found in seconds.items()
        }  # fmt: skip
    return report


def make_base(folder: Path, changes: dict[str, Any]) -> int:
    """Write what `random_pipe` makes of `changes`; returns how many numbers the UNet has."""
    pipe = random_pipe(changes)
    pipe.save_pretrained(folder)
    return sum(parameter.numel() for parameter in pipe.unet.parameters())


def _draw(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        drawn = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=drawn)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


def _order(arm: str, place: Path, bench: StepBench) -> dict[str, Any]:
    """What the process of `arm` is told."""
    steps = bench.steps + SKIPPED + 1
    if arm == "studio":
        settings = {
            "name": "timed", "class_word": "dog", "trigger": "sks", "base": str(place / "base"), "steps": steps,
            "pictures": str(place / "pictures"), "rank": 4, "learning_rate": 1e-4, "schedule": "constant",
            "warmup_steps": 0, "batch_size": 1, "prior_count": 2, "sample_steps": 1, "sample_every": 0,
            "save_every": steps, "resolution": SIDE, "gradient_checkpointing": False,
        }  # fmt: skip
        return {"settings": settings, "home": str(place / "home")}
    precision = mixed_precision(pick_dtype(pick_device()))
    options = {
        "pretrained_model_name_or_path": place / "base", "instance_data_dir": place / "pictures",
        "class_data_dir": place / "class", "num_class_images": 2, "instance_prompt": "a sks dog",
        "class_prompt": "a dog", "resolution": SIDE, "train_batch_size": 1, "rank": 4, "learning_rate": 1e-4,
        "lr_scheduler": "constant", "lr_warmup_steps": 0, "max_train_steps": steps, "seed": 0,
        "output_dir": place / "out", "checkpointing_steps": 10**6, "mixed_precision": precision,
    }  # fmt: skip
    listed = [f"--{key}={value}" for key, value in options.items()]
    return {
        "script": str(bench.script), "options": [*listed, "--with_prior_preservation", "--center_crop"],
        "cached": arm.endswith("cached"),
    }  # fmt: skip


def _intervals(order: dict[str, Any]) -> Sequence[float]:
    """Seconds between steps, in a process of its own."""
    said = subprocess.run(
        [sys.executable, "-c", _CLOCK, json.dumps(order)], capture_output=True, text=True, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    line = next((line for line in said.stdout.splitlines() if line.startswith("ticks ")), None)
    if said.returncode or line is None:
        raise StudioError(
            f"An arm failed:\n{said.stderr[-2000:]}", "Check the script given, and that torchvision is installed."
        )
    ticks = json.loads(line.removeprefix("ticks "))
    return [b - a for a, b in zip(ticks[SKIPPED:], ticks[SKIPPED + 1 :], strict=False)]
