"""Trains the shipped CLIP on renders and captions: `python -m studio.trainers.picturebook_clip`.

A batch is made of families: a scene and three others that differ from it in one thing each, so that a picture's wrong
captions are near ones (Yuksekgonul et al. 2023, arXiv:2210.01936). Late in training a quarter of the pictures pass
through the base's VAE, as everything does that the studio draws.
"""

import argparse
import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from studio.encoders import Clip, load_clip
from studio.home import write_atomic
from studio.metrics import likeness
from studio.picturebook import BACKGROUNDS, CLASSES, COLOURS, PATTERNS, STYLES, Scene, caption, random_scene
from studio.picturebook_draw import render
from studio.pixels import tensor_of
from studio.trainers.picturebook_vae import partly_through

MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {
        "context_length": 48, "vocab_size": 779, "width": 160, "heads": 5, "layers": 3,
        "hf_tokenizer_name": "in this folder", "pool_type": "eos", "eos_id": 1, "no_causal_mask": True,
    },
}  # fmt: skip
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
PEAK, DECAY = 1e-3, 0.02
Family = list[tuple[Scene, str]]


def family(rng: random.Random, held_out: bool | None = None) -> Family:
    """A scene and three that differ from it in one thing each, with their captions: subjects, sides or colours
    exchanged where there are two; another class, colour, pattern, ground or style. All their subjects are held out,
    none (False), or either (None)."""
    scene = random_scene(rng, held_out)
    found = [scene]
    while len(found) < 4:
        one = changed(scene, rng, held_out)
        if all(described(one) != described(other) for other in found):
            found.append(one)
    return [(replace(one, seed=rng.randrange(2**31)), caption(one, rng, drop=0)) for one in found]


def described(scene: Scene) -> Scene:
    """What a full caption tells of it."""
    return replace(scene, seed=0, size="", subjects=tuple(replace(one, second="") for one in scene.subjects))


def changed(scene: Scene, rng: random.Random, held_out: bool | None = None) -> Scene:
    """Another in one thing, or the same; its subjects keep to `held_out` where those of `scene` do."""
    found = _exchanged(scene, rng) if len(scene.subjects) == 2 and rng.random() < 0.4 else _varied(scene, rng)
    held = [one for one in found if held_out is None or all(each.held_out == held_out for each in one.subjects)]
    return rng.choice(held or [scene])


def _exchanged(scene: Scene, rng: random.Random) -> list[Scene]:
    left, right = scene.subjects
    if rng.random() < 0.5:
        return [replace(scene, subjects=(right, left))]
    return [replace(scene, subjects=(replace(left, kind=right.kind), replace(right, kind=left.kind)))]


def _varied(scene: Scene, rng: random.Random) -> list[Scene]:
    """The scene with each value of its ground or style, or of the class, colour or pattern of one of its subjects."""
    place = rng.randrange(len(scene.subjects))
    subject = scene.subjects[place]
    match rng.choice(("kind", "colour", "pattern", "background", "style")):
        case "background":
            return [replace(scene, background=one) for one in BACKGROUNDS]
        case "style":
            return [replace(scene, style=one) for one in STYLES]
        case "kind":
            subjects = [replace(subject, kind=one) for one in CLASSES]
        case "colour":
            subjects = [replace(subject, colour=one) for one in COLOURS if one != subject.second]
        case _:
            subjects = [replace(subject, pattern=one) for one in PATTERNS]
    before, after = scene.subjects[:place], scene.subjects[place + 1 :]
    return [replace(scene, subjects=(*before, one, *after)) for one in subjects]


def contrast(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The symmetric loss of Radford et al. 2021, figure 3."""
    logits = scale * images @ texts.T
    right = torch.arange(len(logits))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def train_clip(vae: AutoencoderTiny, tokenizer: Any, steps: int, families: int, seed: int) -> Any:
    """`steps` of `families` of four."""
    import open_clip

    torch.manual_seed(seed)
    rng = random.Random(f"clip {seed}")
    model: Any = open_clip.CLIP(**MODEL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, steps, pct_start=0.05)
    began = time.monotonic()
    for step in range(1, steps + 1):
        batch = [one for _ in range(families) for one in family(rng, held_out=False)]
        blurred = 0.25 if step > 0.6 * steps else 0.0
        x = partly_through(vae, tensor_of([render(scene) for scene, _ in batch]), blurred, rng)
        images, texts, scale = model(x, tokenizer([text for _, text in batch]))
        loss = contrast(images, texts, scale)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # 100, as the authors have it
        if step % 50 == 0:
            print(f"clip {step} loss {loss.item():.3f} {time.monotonic() - began:.0f} s", flush=True)
    return model


def write_clip(folder: Path, model: Any, tokenizers: Path) -> None:
    """A folder that open_clip loads as local-dir:FOLDER, weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        shutil.copyfile(tokenizers / name, folder / name)
    config = json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}, indent=1) + "\n"
    write_atomic(folder / "open_clip_config.json", lambda file: file.write_text(config, encoding="utf-8"))
    weights = {name: one.half().contiguous() for name, one in model.state_dict().items()}
    write_atomic(folder / "open_clip_model.safetensors", lambda file: save_file(weights, file))


def accuracy(clip: Clip, seed: int, count: int = 500) -> dict[str, float]:
    """Of families of held-out subjects, which training never shows: how often a picture's own caption is the nearest of
    the four, a caption's own picture too, and how often two pictures of one scene are more alike than those of two
    scenes of its family."""
    rng = random.Random(f"clip test {seed}")
    families = [family(rng, held_out=True) for _ in range(count)]
    drawn = clip.images([render(scene) for one in families for scene, _ in one]).unflatten(0, (count, 4))
    again = clip.images([render(replace(one[0][0], seed=rng.randrange(2**31))) for one in families])
    texts = clip.texts([text for one in families for _, text in one]).unflatten(0, (count, 4))
    scores = drawn @ texts.transpose(1, 2)  # [count, picture, caption]
    right = torch.arange(4)
    alike = torch.stack([likeness(own, other[None]) for own, other in zip(drawn, again, strict=True)])
    return {
        "caption of a picture": float((scores.argmax(2) == right).float().mean()),
        "picture of a caption": float((scores.argmax(1) == right).float().mean()),
        "same scene again": float((alike.argmax(1) == 0).float().mean()),
    }


def main() -> None:
    """Train, write, and report what is written beside it."""
    parser = argparse.ArgumentParser(description="Train a small CLIP of the picturebook world.")
    parser.add_argument("--base", type=Path, default=Path("assets/picturebook"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--families", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("assets/clip"))
    args = parser.parse_args()
    from open_clip.tokenizer import HFTokenizer

    vae = AutoencoderTiny.from_pretrained(args.base / "vae").eval().requires_grad_(False)
    tokenizer = HFTokenizer(str(args.base / "tokenizer"), context_length=MODEL["text_cfg"]["context_length"])
    write_clip(args.out, train_clip(vae, tokenizer, args.steps, args.families, seed=0), args.base / "tokenizer")
    report = {"pictures": 4 * args.steps * args.families} | accuracy(load_clip(str(args.out)), 1)
    text = json.dumps(report, indent=1) + "\n"
    write_atomic(args.out / "accuracy.json", lambda file: file.write_text(text, encoding="utf-8"))
    print(text)


if __name__ == "__main__":
    main()
