"""The parts of the picturebook as one diffusers pipeline: put together, previewed, exported."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image

from studio.home import write_folder
from studio.picturebook import IDENTIFIERS, caption, random_scene
from studio.trainers.picturebook_unet import TextSide, build_scheduler

BLOCKS = {"content": "up_blocks.1.attentions.1", "style": "up_blocks.1.attentions.2"}  # found by studio bench blocks
PREVIEW_PROMPTS = (
    "a red cat on grass, flat style",
    "a blue striped dog on sand, outline style",
    "a yellow star at night, pixel style",
    "a green and pink dotted mug on paper, flat style",
    "a purple checkered robot in the sky, watercolor style",
    "an orange fish on sand, hatched style",
    "a red cat on the left and a blue dog on the right on grass, flat style",
    "a pink heart and a green tree at night, flat style",
    "a white house to the right of a yellow car on sand, outline style",
    "a sks cat",
    "a blue dotted star and a red striped fish on paper, pixel style",
    "a yellow and blue checkered car on grass",
)


def assemble(vae: AutoencoderTiny, text: TextSide, unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """The parts as a plain diffusers pipeline."""
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=text.first, text_encoder_2=text.second, tokenizer=text.tokenizer,  # pyright: ignore
        tokenizer_2=text.tokenizer, unet=unet, scheduler=build_scheduler(), add_watermarker=False,  # pyright: ignore
    )  # fmt: skip


def contact_sheet(pipe: StableDiffusionXLPipeline, size: int, steps: int = 20) -> Image.Image:
    """The preview prompts, two seeds each, on one sheet."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2 * len(PREVIEW_PROMPTS))]
    prompts: list[str] = [*PREVIEW_PROMPTS, *PREVIEW_PROMPTS]
    images: Any = pipe(
        prompts,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=generators,
        return_dict=False,
    )[0]
    sheet = Image.new("RGB", (size * len(PREVIEW_PROMPTS), size * 2))
    for index, image in enumerate(images):
        sheet.paste(image, (index % len(PREVIEW_PROMPTS) * size, index // len(PREVIEW_PROMPTS) * size))
    return sheet


def prior_prompts() -> list[str]:
    """Prompts of class pictures: the concept's class and others, before all grounds, in all styles."""
    rng = random.Random("prior")
    prompts = ["a {class_word}"]
    for number in range(23):
        scene = random_scene(rng, subjects=1)
        text = caption(scene, rng, drop=0.2, identifiers=0)
        prompts.append(text.replace(scene.subjects[0].kind, "{class_word}") if number % 2 else text)
    return prompts


def export(out: Path, vae: AutoencoderTiny, text: TextSide, unet: UNet2DConditionModel) -> None:
    """Write the pipeline as fp16 safetensors in the diffusers layout, and what the studio knows of it; what else is in
    `out` stays there."""
    write_folder(out, lambda draft: _write(draft, out, assemble(vae, text, unet)))


def _write(draft: Path, out: Path, pipe: StableDiffusionXLPipeline) -> None:
    if out.exists():
        shutil.copytree(out, draft, dirs_exist_ok=True)
    pipe.to(torch.float16).save_pretrained(draft, safe_serialization=True)
    _edit(draft / "vae" / "config.json", drop="block_out_channels")  # diffusers writes it, and warns when it reads it
    for tower in ("text_encoder", "text_encoder_2"):  # else they load in fp16 beside a UNet in fp32
        _edit(draft / tower / "config.json", dtype="float32")
    facts = {"identifiers": IDENTIFIERS, "native_size": 96, "prior_prompts": prior_prompts(), "blocks": BLOCKS}
    (draft / "studio_base.json").write_text(json.dumps(facts, indent=1) + "\n")


def _edit(config: Path, drop: str = "", dtype: str = "") -> None:
    known = json.loads(config.read_text())
    known.pop(drop, None)
    config.write_text(json.dumps(known | ({"dtype": dtype} if dtype else {}), indent=2) + "\n")
