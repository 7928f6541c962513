"""Gives the picturebook's VAE a deeper decoder that draws clear edges from latents that are not quite right.

A diffusion model's latents are never those of a drawing. The encoder stays as it is, so latents keep their meaning: a
UNet and adapters made with the VAE stay true.
"""

import random
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

from studio.devices import multiplies_bfloat16
from studio.picturebook import Scene, random_scene
from studio.picturebook_draw import render
from studio.trainers.picturebook_unet import Averaged, Stage, learning_rate
from studio.trainers.picturebook_vae import decode, encode

BLOCKS = (6, 3, 1)  # from coarse to fine
BATCH = 24
PEAK = 1.5e-3
NOISE = 0.3  # the most that is added to latents, of a deviation of about 0.9
VIEW = 14  # cells a side of what a step sees of a picture
EDGE = 1  # cells at its sides whose pixels do not count where the picture goes on


def deepen(vae: AutoencoderTiny, blocks: tuple[int, ...]) -> AutoencoderTiny:
    """`vae` with so many residual blocks at each size of its decoder; those that are new change nothing yet."""
    deeper: Any = AutoencoderTiny.from_config({**vae.config, "num_decoder_blocks": blocks})
    deeper.encoder.load_state_dict(vae.encoder.state_dict())
    for old, new in zip(_levels(vae), _levels(deeper), strict=True):
        for was, layer in zip_longest(old, new):
            if was is not None:
                layer.load_state_dict(was.state_dict())
            else:
                nn.init.zeros_(layer.conv[-1].weight)
                nn.init.zeros_(layer.conv[-1].bias)
    return deeper


def _levels(vae: AutoencoderTiny) -> list[list[Any]]:
    """The decoder's layers with weights: for each size its blocks; the convolutions between them stand alone."""
    levels: list[list[Any]] = [[]]
    for layer in vae.decoder.layers:
        if isinstance(layer, nn.Conv2d):
            levels += [[layer], []]
        elif isinstance(layer, AutoencoderTinyBlock):
            levels[-1].append(layer)
    return levels


def decoding_loss(output: Tensor, target: Tensor) -> Tensor:
    """Absolute and squared error of pixels, and the absolute one of their differences to neighbours: edges stay sharp
    where a squared error alone prefers them blurred."""
    error = output - target
    loss = error.abs().mean() + error.square().mean()
    for dim in (2, 3):
        loss = loss + 0.5 * error.diff(dim=dim).abs().mean()
    return loss


def view_of(scene: Scene, rng: random.Random, side: int) -> tuple[int, int]:
    """(top, left) of a view of VIEW cells, about one of the scene's subjects, in a picture of `side` cells."""
    left, top, right, bottom = rng.choice(scene.boxes())
    centre = ((top + bottom) / 2, (left + right) / 2)
    starts = [round(at * side + rng.uniform(-6, 6) - VIEW / 2) for at in centre]
    return min(max(starts[0], 0), side - VIEW), min(max(starts[1], 0), side - VIEW)


def counted(top: int, left: int, side: int, factor: int) -> Tensor:
    """[1, h, w]: 1 where the pixels of such a view count, 0 at its sides where the picture goes on."""
    mask = torch.ones(1, VIEW * factor, VIEW * factor)
    for dim, start in ((1, top), (2, left)):
        if start > 0:
            mask.narrow(dim, 0, EDGE * factor).zero_()
        if start + VIEW < side:
            mask.narrow(dim, (VIEW - EDGE) * factor, EDGE * factor).zero_()
    return mask


def train_decoder(
    vae: AutoencoderTiny, steps: int, pool: int, seed: int, log: Callable[[int, float, str], None]
) -> AutoencoderTiny:
    """Deepen the decoder and train it alone for `steps`, on `pool` pictures; three in four latents are noised."""
    torch.manual_seed(seed)
    rng = random.Random(f"decoder {seed}")
    scenes = [random_scene(rng, held_out=None) for _ in range(pool)]
    pictures = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2)
    with torch.no_grad():
        latents = torch.cat([encode(vae, _floats(few)) for few in pictures.split(32)])  # [pool, 4, h, w]
    deeper = deepen(vae, BLOCKS).train()
    average = Averaged(deeper, 0.998)
    parameters = list(deeper.decoder.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK, betas=(0.9, 0.99), weight_decay=1e-4)
    course = Stage(pictures.shape[-1], steps * BATCH, BATCH, PEAK, PEAK / 100, warmup=100)
    side, factor = latents.shape[-1], pictures.shape[-1] // latents.shape[-1]
    for step in range(steps):
        views = []
        for index in (rng.randrange(pool) for _ in range(BATCH)):
            top, left = view_of(scenes[index], rng, side)
            views.append((
                latents[index, :, top : top + VIEW, left : left + VIEW],
                pictures[index, :, top * factor : (top + VIEW) * factor, left * factor : (left + VIEW) * factor],
                counted(top, left, side, factor),
            ))  # fmt: skip
        clean, target, mask = (torch.stack(part) for part in zip(*views, strict=True))
        amount = NOISE * torch.rand(BATCH, 1, 1, 1) * (torch.rand(BATCH, 1, 1, 1) < 0.75)
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(torch.device("cpu"))):
            output = decode(deeper, clean + amount * torch.randn_like(clean))
        loss = decoding_loss(output.float() * mask, _floats(target) * mask)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(course, step * BATCH)
        optimizer.step()
        optimizer.zero_grad()
        average.update(deeper)
        log(step + 1, loss.item(), "")
    return average.model


def _floats(pictures: Tensor) -> Tensor:
    return pictures.float().div(127.5).sub(1)
