"""Writes docs/benchmarks/memory.json: what the settings of --vram are estimated to take on bases of full size.

Their networks are built without numbers, as the tests that count parameters build them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import studio  # before peft: see studio.torchvision_guard

sys.path.insert(0, str(Path(studio.__file__).parents[1] / "tests"))

import torch
from peft import LoraConfig
from test_parameter_counts import SD15, SDXL, build

from studio.trainers.estimate import Need, activation_bytes, trained_bytes
from studio.trainers.presets import FITTING
from studio.trainers.recipe import ATTENTION

ROOT = Path(__file__).parents[1]
RANK, ROWS, TOKENS = 16, 2, 77  # one picture and one class picture a step
OTHERS = {"sdxl": 2 * (123_060_480 + 694_659_840 + 83_653_863), "sd15": 2 * (123_060_480 + 83_653_863)}
"""Bytes in bfloat16 of the text encoders (CLIP ViT-L; for SDXL OpenCLIP bigG too) and the VAE."""


def main() -> None:
    """Count and write."""
    report: dict[str, Any] = {"rank": RANK, "rows": ROWS, "bases": {}}
    for name, config, side in (("sdxl", SDXL, 1024), ("sd15", SD15, 512)):
        unet: Any = build(config).to(torch.bfloat16).requires_grad_(False)
        weights = 2 * sum(one.numel() for one in unet.parameters())
        unet.add_adapter(LoraConfig(r=RANK, target_modules=list(ATTENTION)))
        unet.to("meta")
        numbers = sum(one.numel() for one in unet.parameters() if one.requires_grad)
        found = report["bases"].setdefault(f"{name}, {side} px", {})
        for size, settings in FITTING.items():
            if settings["gradient_checkpointing"]:
                unet.enable_gradient_checkpointing()
            else:
                unet.disable_gradient_checkpointing()
            seen = activation_bytes(unet, [(ROWS, 4, side // 8, side // 8)], TOKENS, torch.bfloat16)
            held = weights + (0 if settings.get("offload") else OTHERS[name])
            need = Need(held, trained_bytes(numbers), seen)
            parts = {"base": need.weights, "trained": need.trained, "pictures": need.activations, "all": need.total}
            found[str(size)] = {part: round(number / 1e9, 2) for part, number in parts.items()}
    text = json.dumps(report, indent=1) + "\n"
    (ROOT / "docs" / "benchmarks" / "memory.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
