"""The VAE's start: colour passes from the first step on."""

import random

import pytest
import torch
from torch.nn import functional as F

from studio.trainers.picturebook_vae import (
    build_vae,
    decode,
    encode,
    partly_through,
    pictures,
    psnr,
    reconstruction_loss,
    standardise,
)  # fmt: skip


def test_the_untrained_vae_returns_pooled_colours():
    torch.manual_seed(0)
    x = pictures(random.Random(1), 16)
    vae = build_vae(x)
    thumbnail = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4)
    reached = psnr(vae, count=16)
    ceiling = 10 * torch.log10(4 / F.mse_loss(thumbnail, x))
    assert reached > float(ceiling) - 3


def test_standardised_channels_have_deviation_one_and_decode_as_before():
    torch.manual_seed(0)
    x = pictures(random.Random(2), 16)
    vae = build_vae(x)
    with torch.no_grad():
        before = decode(vae, encode(vae, x))
        standardise(vae, x)
        latents = encode(vae, x)
        after = decode(vae, latents)
    assert latents.std((0, 2, 3)) == pytest.approx([1.0] * 4, abs=1e-3)
    assert latents.mean((0, 2, 3)) == pytest.approx([0.0] * 4, abs=1e-3)
    assert F.mse_loss(before, after) < 0.02  # the decoder's soft clamp at 3 is all that changes


def test_reconstruction_loss_is_pixels_plus_both_differences():
    target = torch.zeros(1, 3, 2, 2)
    output = torch.zeros(1, 3, 2, 2)
    output[..., 0, 0] = 1.0
    assert float(reconstruction_loss(output, target)) == pytest.approx(0.25 + 0.5 + 0.5)


def test_a_share_of_the_pictures_passes_through_the_vae():
    torch.manual_seed(0)
    x = pictures(random.Random(3), 40)
    vae = build_vae(x)
    passed = partly_through(vae, x.clone(), 0.25, random.Random(4))
    changed = (passed != x).flatten(1).any(1)
    assert 4 <= int(changed.sum()) <= 16
    with torch.no_grad():
        assert torch.allclose(passed[changed], vae(x[changed]).sample.clamp(-1, 1), atol=1e-5)
    assert torch.equal(partly_through(vae, x.clone(), 0.0, random.Random(4)), x)
