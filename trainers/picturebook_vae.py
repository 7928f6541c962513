"""The picturebook's VAE: an AutoencoderTiny of factor 4, trained on crops of renders.

Three latent channels start as average-pooled colour, whitened by PCA, so that training begins near a
sharp thumbnail instead of at noise; the fourth is free for detail.
"""

import random
from collections.abc import Callable

import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn
from torch.nn import functional as F

from studio.picturebook import random_scene
from studio.picturebook_draw import render
from studio.pixels import tensor_of

WIDTH = 32
CROP = 48


def pictures(rng: random.Random, count: int, size: int = 96) -> Tensor:
    """Random renders in [-1, 1]: [count, 3, size, size]."""
    return tensor_of([render(random_scene(rng, held_out=None), size, size) for _ in range(count)])


def encode(vae: AutoencoderTiny, x: Tensor) -> Tensor:
    """Latents [B, 4, H/4, W/4] of pictures [B, 3, H, W] in [-1, 1]."""
    return vae.encode(x, return_dict=False)[0]


def decode(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] of `latents`."""
    return vae.decode(latents, return_dict=False)[0]


@torch.no_grad()
def partly_through(vae: AutoencoderTiny, x: Tensor, share: float, rng: random.Random) -> Tensor:
    """Pictures `x` [B, 3, H, W], each replaced with probability `share` by what `vae` makes of it."""
    chosen = torch.tensor([rng.random() < share for _ in x])
    if chosen.any():
        x[chosen] = vae(x[chosen]).sample.clamp(-1, 1)
    return x


def build_vae(sample: Tensor) -> AutoencoderTiny:
    """An untrained VAE whose first three latents are the pooled colours of `sample` [B, 3, H, W], whitened."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
        scaling_factor=1.0,
    )
    pooled = F.avg_pool2d(sample.add(1).div(2), 4).permute(0, 2, 3, 1).reshape(-1, 3)  # [N, 3] in [0, 1]
    values, vectors = torch.linalg.eigh(torch.cov(pooled.T))
    whiten = vectors.T / values.sqrt()[:, None]  # [3, 3]
    with torch.no_grad():
        _pass_colour(vae.encoder.layers, whiten, -whiten @ pooled.mean(0))
        _pass_colour(vae.decoder.layers, torch.linalg.inv(whiten), pooled.mean(0), decode=True)
    return vae


def _pass_colour(layers: nn.Sequential, matrix: Tensor, shift: Tensor, decode: bool = False) -> None:
    """Make channels 0..2 of every layer carry colour unchanged, and the outermost convolution apply `matrix`."""
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            identity = layer.weight.new_zeros(3, *layer.weight.shape[1:])
            if layer.stride == (2, 2):  # the mean of 2 x 2; with padding 1 they are the last two taps
                identity[range(3), range(3), 1:, 1:] = 0.25
            else:
                identity[range(3), range(3), 1, 1] = 1
            layer.weight[:3] = identity
            if layer.bias is not None:
                layer.bias[:3] = 0
        elif isinstance(layer, AutoencoderTinyBlock):  # nothing is added to the colours yet
            for parameter in layer.conv[-1].parameters():
                parameter[:3] = 0
    mixing = _biased(convs[0] if decode else convs[-1])
    mixing[0][:3] = 0
    mixing[0][:3, :3, 1, 1] = matrix
    mixing[1][:3] = shift


def _biased(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that has both."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    return layer.weight, layer.bias


@torch.no_grad()
def standardise(vae: AutoencoderTiny, sample: Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1 on `sample`, the outermost convolutions taking up the change.

    The detail channel otherwise stays a tenth as large as colour, and a diffusion model would lose it in the noise.
    """
    latents = encode(vae, sample)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last_weight, last_bias = _biased(vae.encoder.layers[-1])
    first_weight, first_bias = _biased(vae.decoder.layers[0])
    last_weight /= deviation.view(-1, 1, 1, 1)
    last_bias.sub_(mean).div_(deviation)
    first_bias += (first_weight.sum((2, 3)) * mean).sum(1)
    first_weight *= deviation.view(1, -1, 1, 1)


def deviation_penalty(latents: Tensor) -> Tensor:
    """How far the channels of `latents` [B, C, h, w] are from mean 0 and deviation 1."""
    return latents.mean((0, 2, 3)).square().sum() + (latents.std((0, 2, 3)) - 1).square().sum()


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of pixels and of their differences to neighbours, which sees lines that pixels forgive."""
    loss = F.mse_loss(output, target)
    for dim in (2, 3):
        loss = loss + F.mse_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


def train_vae(steps: int, batch: int, seed: int, log: Callable[[int, float], None]) -> AutoencoderTiny:
    """Train on fresh renders for `steps`, from the middle on with standardised latents."""
    torch.manual_seed(seed)
    rng = random.Random(f"vae {seed}")
    vae = build_vae(pictures(rng, 64))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.05)
    for step in range(steps):
        if step == steps // 2:
            standardise(vae, pictures(rng, 128))
        x = pictures(rng, batch)
        top, left = rng.randrange(0, 96 - CROP + 1, 4), rng.randrange(0, 96 - CROP + 1, 4)
        x = x[:, :, top : top + CROP, left : left + CROP]
        latents = encode(vae, x)
        loss = reconstruction_loss(decode(vae, latents), x)
        if step >= steps // 2:
            loss = loss + 1e-3 * deviation_penalty(latents)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        log(step + 1, loss.item())
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0 / float(encode(vae, pictures(rng, 256)).std()))
    return vae


@torch.no_grad()
def psnr(vae: AutoencoderTiny, seed: int = 10_000, count: int = 128) -> float:
    """Peak signal to noise of reconstructions of fresh renders, in dB."""
    x = pictures(random.Random(seed), count)
    return float(10 * torch.log10(4 / F.mse_loss(decode(vae, encode(vae, x)).clamp(-1, 1), x)))
