# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportCallIssue=false
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studio.errors import StudioError
from studio.models import BaseModel, wrap_pipe
from studio.pipelines.decoding import in_float32
from studio.pipelines.random_bases import random_pipe
from studio.trainers.data import Example, encode_examples
from studio.trainers.sampling import draw


@pytest.fixture
def half() -> BaseModel:
    """A base in float16 whose VAE overflows there, as SDXL's does, and says so."""
    pipe = random_pipe({})
    pipe.vae.register_to_config(force_upcast=True)
    pipe.vae.post_quant_conv.weight.data.mul_(300)
    pipe.vae.decoder.conv_in.weight.data.mul_(3000)
    pipe.to(torch.float16)
    pipe.set_progress_bar_config(disable=True)
    return wrap_pipe(pipe)


def test_pictures_of_a_vae_that_needs_float32_are_those_of_plain_diffusers(half: BaseModel) -> None:
    (drawn,) = draw(half, ["a cat"], [0], 32, 2, 2.0)
    plain = half.pipe("a cat", width=32, height=32, num_inference_steps=2, guidance_scale=2.0,
                      generator=torch.Generator().manual_seed(0)).images[0]  # fmt: skip
    assert np.asarray(plain).std() > 10
    assert np.abs(np.asarray(drawn, float) - np.asarray(plain, float)).mean() < 3
    assert half.vae.dtype == torch.float16


def test_pictures_are_encoded_in_float32(half: BaseModel, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    found = encode_examples(half, [Example(tmp_path / "a.png", "a cat")], 32, tmp_path / "cache", true_sizes=False)
    assert half.vae.dtype == torch.float16
    with torch.no_grad():
        expected = half.vae.float().encode(x).latent_dist.mean * half.vae.config["scaling_factor"]
    torch.testing.assert_close(found.whole.latents, expected, atol=1e-6, rtol=1e-5)


def test_latents_of_no_numbers_are_refused_and_not_kept(half: BaseModel, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    half.vae.encoder.conv_in.bias.data.fill_(torch.nan)
    with pytest.raises(StudioError, match=r"no numbers of the picture a\.png"):
        encode_examples(half, [Example(tmp_path / "a.png", "a cat")], 32, tmp_path / "cache", true_sizes=False)
    assert not list((tmp_path / "cache").glob("*"))


def test_nothing_is_said_of_a_change_of_type(half: BaseModel, capfd: pytest.CaptureFixture[str]) -> None:
    draw(half, ["a cat"], [0], 32, 1, 1.0)
    with in_float32(half.vae):
        pass
    assert "float32" not in capfd.readouterr().err
