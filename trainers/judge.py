"""Trains the judges on renders: `python -m studio.trainers.judge A|B`.

Each step shows pairs of one subject in two scenes, and distractors that differ from it in one attribute. Attributes are
learned by classification, the embedding by contrast (Khosla et al. 2020, arXiv:2004.11362): two views of one subject
attract, everything else in the batch repels, the distractors above all. What is drawn is bent a little, as by a hand or
a diffusion model; late in training many pictures pass through the base's VAE, so that its blur is not taken for a
style.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderTiny
from PIL import Image, ImageEnhance, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from studio.devices import multiplies_bfloat16
from studio.home import write_atomic
from studio.judge import ATTRIBUTES, Gallery, Judge, JudgeNet
from studio.picturebook import (
    ACCESSORIES,
    BACKGROUNDS,
    COLOURS,
    SAMPLE_STYLES,
    SAMPLE_SUBJECTS,
    SIZES,
    STYLES,
    Scene,
    Subject,
    distractors,
    random_subject,
)  # fmt: skip
from studio.picturebook_draw import render
from studio.pixels import tensor_of
from studio.stats import Share
from studio.trainers.picturebook_vae import partly_through

Which = Literal["A", "B"]
STEPS = 8000
SEEDS = {"A": 11, "B": 47}
IGNORED = -100
COLOURLESS = SAMPLE_STYLES  # styles in which colours cannot be told
CROPS = ((48, 96), (48, 96), (60, 60), (48, 64), (64, 96))  # width, height of the second view


def dressed_subject(rng: random.Random) -> Subject:
    """A random subject, two thirds of the time with an accessory, which a colour of its own lets be seen."""
    subject = random_subject(rng)
    if rng.random() < 2 / 3:
        accent = rng.choice([colour for colour in COLOURS if colour != subject.colour])
        subject = replace(subject, accessory=rng.choice(ACCESSORIES[1:]), accent=accent)
    return subject


def view(
    subject: Subject | None, rng: random.Random, shape: tuple[int, int]
) -> tuple[Image.Image, dict[str, int], tuple[float, float]]:
    """(crop of `shape` with the subject in it, attribute targets, the subject's place in the crop).

    Without a subject the crop shows a background; a crop narrower than the canvas may come from a scene of two.
    """
    style = rng.choice(STYLES) if rng.random() < 0.85 else rng.choice(SAMPLE_STYLES)
    alone = subject is None or shape[0] > 64 or rng.random() < 0.4
    cast = [] if subject is None else [subject]
    if not alone:
        cast.insert(rng.randrange(2), dressed_subject(rng))
    scene = Scene(tuple(cast), rng.choice(BACKGROUNDS), style, rng.choice(SIZES), rng.randrange(2**31))
    image = render(scene)
    targets = dict.fromkeys(ATTRIBUTES, IGNORED)
    targets["background"] = BACKGROUNDS.index(scene.background)
    targets["style"] = ATTRIBUTES["style"].index(style)
    if subject is None:
        targets["kind"] = ATTRIBUTES["kind"].index("none")
        centre = (0.5, 0.5)
    else:
        targets |= subject_targets(subject, style)
        left, top, right, bottom = scene.boxes()[cast.index(subject)]
        centre = ((left + right) / 2, (top + bottom) / 2)
    x = min(max(centre[0] * 96 - shape[0] / 2 + rng.uniform(-5, 5), 0), 96 - shape[0])
    y = min(max(centre[1] * 96 - shape[1] / 2 + rng.uniform(-7, 3), 0), 96 - shape[1])
    left, top = round(x), round(y)
    place = ((centre[0] * 96 - left) / shape[0], (centre[1] * 96 - top) / shape[1])
    return image.crop((left, top, left + shape[0], top + shape[1])), targets, place


def subject_targets(subject: Subject, style: str) -> dict[str, int]:
    """What can be read of the subject: no second colour where it is plain, no colours in colourless styles."""
    named = {"kind": subject.kind, "pattern": subject.pattern, "accessory": subject.accessory}
    if style not in COLOURLESS:
        named["colour"] = subject.colour
        if subject.pattern != "plain":
            named["second"] = subject.second
        if subject.accessory != "none":
            named["accent"] = subject.accent
    return {name: ATTRIBUTES[name].index(value) for name, value in named.items()}


def disturb(image: Image.Image, which: Which, rng: random.Random) -> Image.Image:
    """A: exposure and contrast. B: blur, saturation, and a shift of a pixel or two."""
    if which == "A":
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.88, 1.12))
        return ImageEnhance.Contrast(image).enhance(rng.uniform(0.85, 1.15))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.8, 1.2))
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, rng.uniform(-2, 2), 0, 1, rng.uniform(-2, 2)))


def bent(x: Tensor, which: Which) -> Tensor:
    """Pictures [B, 3, H, W] moved by less than a pixel, seldom two, here and there, more coarsely for A than for B."""
    batch, _, height, width = x.shape
    spacing, reach = (24, 1.0) if which == "A" else (12, 0.7)
    knots = torch.randn(batch, 2, height // spacing, width // spacing) * reach * torch.rand(batch, 1, 1, 1)
    moved = F.interpolate(knots, (height, width), mode="bicubic") * 2 / torch.tensor([width, height]).view(1, 2, 1, 1)
    upright = torch.eye(2, 3).expand(batch, 2, 3)
    grid = F.affine_grid(upright, [*x.shape], align_corners=False) + moved.permute(0, 2, 3, 1)  # [B, H, W, 2]
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def batch_of_views(
    subjects: Sequence[Subject | None],
    shape: tuple[int, int],
    which: Which,
    vae: AutoencoderTiny,
    rng: random.Random,
    blurred: float,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(pictures [B, 3, H, W], targets by attribute [B], places [B, 2]), the share `blurred` through the VAE."""
    views = [view(subject, rng, shape) for subject in subjects]
    x = bent(tensor_of([disturb(image, which, rng) for image, _, _ in views]), which)
    x = partly_through(vae, x, blurred, rng)
    x = x + rng.uniform(0, 0.06) * torch.randn_like(x)
    targets = {name: torch.tensor([t[name] for _, t, _ in views]) for name in ATTRIBUTES}
    return x, targets, torch.tensor([place for _, _, place in views])


def contrast(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss of unit `embeddings` [B, D]; rows without a partner are left out."""
    logits = embeddings @ embeddings.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool)
    partner = (labels[:, None] == labels[None]) & ~itself
    log_share = logits.masked_fill(itself, -torch.inf).log_softmax(-1).masked_fill(~partner, 0)
    count = partner.sum(-1)
    return -(log_share.sum(-1)[count > 0] / count[count > 0]).mean()


def loss_of(net: JudgeNet, groups: Sequence[tuple[Tensor, dict[str, Tensor], Tensor]], labels: Tensor) -> Tensor:
    """Attribute, place and contrastive losses of two or more groups of views of the same subjects' `labels`."""
    with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(torch.device("cpu"))):
        outputs = [net(x) for x, _, _ in groups]
    total = torch.zeros(())
    for name in ATTRIBUTES:
        logits = torch.cat([o[0][name].float() for o in outputs])
        total = total + F.cross_entropy(logits, torch.cat([g[1][name] for g in groups]), ignore_index=IGNORED)
    present = torch.cat([g[1]["kind"] for g in groups]) != ATTRIBUTES["kind"].index("none")
    places = torch.cat([o[2].float() for o in outputs]) - torch.cat([g[2] for g in groups])
    coloured = present & (torch.cat([g[1]["colour"] for g in groups]) != IGNORED)
    embeddings = torch.cat([o[1].float() for o in outputs])
    return total + 10 * places[present].square().mean() + 0.5 * contrast(embeddings[coloured], labels[coloured])


def train_judge(which: Which, vae: AutoencoderTiny, steps: int, seed: int) -> Judge:
    """Train one judge for `steps` of 58 pictures."""
    torch.manual_seed(seed)
    rng = random.Random(f"judge {which} {seed}")
    net = JudgeNet(which)
    peak = 2e-3 if which == "A" else 1.5e-3
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, pct_start=0.1)
    began = time.monotonic()
    for step in range(steps):
        subjects: list[Subject | None] = [dressed_subject(rng) for _ in range(14)]
        near = [rng.choice(distractors(s)) for s in subjects if s]
        everyone = [*subjects, *near]
        labels = torch.tensor([everyone.index(s) for s in everyone])  # of equal subjects the first's
        narrow = rng.choice(CROPS)
        blurred = 0.4 if step > 0.6 * steps else 0.0
        empty: list[Subject | None] = [None] * 2
        groups = [
            batch_of_views(everyone, (96, 96), which, vae, rng, blurred),
            batch_of_views([*everyone, *empty], narrow, which, vae, rng, blurred),
        ]
        loss = loss_of(net, groups, torch.cat([labels, labels, torch.tensor([-1, -2])]))
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"judge {which} {step + 1} loss {loss.item():.3f} {time.monotonic() - began:.0f} s", flush=True)
    return Judge(net)


def accuracy(judge: Judge, seed: int, count: int = 400, vae: Any = None) -> dict[str, Share]:
    """How often each attribute of fresh renders is read right, on whole pictures ("whole_kind") and on halves of
    pictures; through `vae` where given, the same renders."""
    rng = random.Random(f"judge test {seed}")
    result: dict[str, Share] = {}
    for label, shape in (("whole", (96, 96)), ("half", (48, 96))):
        views = [view(dressed_subject(rng), rng, shape) for _ in range(count)]
        readings = judge.read(_through(vae, [image for image, _, _ in views]))
        for name, values in ATTRIBUTES.items():
            seen = [(getattr(r, name), t[name]) for r, (_, t, _) in zip(readings, views, strict=True)]
            right = [values.index(value) == target for value, target in seen if target != IGNORED]
            result[f"{label}_{name}"] = Share.of(right)
    return result


def identity_accuracy(judge: Judge, seed: int, per_concept: int = 25, vae: Any = None) -> Share:
    """How often fresh renders of the sample concepts are nearest to their own concept among all distractors."""
    rng = random.Random(f"identity test {seed}")
    hits: list[bool] = []
    for subject in SAMPLE_SUBJECTS.values():
        others = [s for s in SAMPLE_SUBJECTS.values() if s != subject]
        gallery = Gallery(judge, [subject, *others, *distractors(subject)])
        shown = [
            render(
                Scene((subject,), rng.choice(BACKGROUNDS), rng.choice(STYLES), rng.choice(SIZES), rng.randrange(2**31))
            )
            for _ in range(per_concept)
        ]
        hits += gallery.identity(judge.embed(_through(vae, shown)), subject)[0].tolist()
    return Share.of(hits)


@torch.no_grad()
def _through(vae: Any, images: list[Image.Image]) -> list[Image.Image]:
    if vae is None:
        return images
    decoded = torch.cat([vae(tensor_of(images[n : n + 25])).sample for n in range(0, len(images), 25)])
    pixels = decoded.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(array.numpy()) for array in pixels]


def measured(judge: Judge, vae: Any, seed: int, count: int = 400) -> dict[str, Any]:
    """How good a judge is on fresh renders and on the same after `vae`, as it is reported."""
    parts = {"renders": None, "reconstructions": vae}
    found: dict[str, Any] = {
        part: {name: share.rounded() for name, share in accuracy(judge, seed, count, coder).items()}
        for part, coder in parts.items()
    }
    for part, coder in parts.items():
        found[part]["identity"] = identity_accuracy(judge, seed, max(1, count // 16), coder).rounded()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Train a judge, write its weights in fp16, and tell how good it is."""
    parser = argparse.ArgumentParser(description="Train a judge of the picturebook world.")
    parser.add_argument("which", choices=("A", "B"))
    parser.add_argument("--vae", type=Path, default=Path("assets/picturebook/vae"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("assets/judges"))
    args = parser.parse_args(argv)
    vae = AutoencoderTiny.from_pretrained(args.vae).eval().requires_grad_(False)
    judge = train_judge(args.which, vae, args.steps, seed=SEEDS[args.which])
    weights = {k: v.half().contiguous() for k, v in judge.net.state_dict().items()}
    write_atomic(args.out / f"{args.which}.safetensors", lambda path: save_file(weights, path))
    judge.net.half().float()  # what is measured is what is shipped
    print(json.dumps(measured(judge, vae, 1), indent=1))


if __name__ == "__main__":
    main()
