"""The deeper decoder begins as the old one, and learning moves nothing else."""

import random

import pytest
import torch

from studio.picturebook import random_scene
from studio.trainers.picturebook_decoder import BLOCKS, VIEW, counted, decoding_loss, deepen, train_decoder, view_of
from studio.trainers.picturebook_vae import build_vae, decode, encode, pictures


def test_a_deeper_decoder_decodes_as_before():
    torch.manual_seed(0)
    x = pictures(random.Random(1), 4)
    vae = build_vae(x)
    deeper = deepen(vae, (4, 3, 2))
    with torch.no_grad():
        latents = encode(vae, x)
        assert torch.equal(encode(deeper, x), latents)
        assert torch.equal(decode(deeper, latents), decode(vae, latents))
    assert tuple(deeper.config["num_decoder_blocks"]) == (4, 3, 2)
    assert sum(p.numel() for p in deeper.parameters()) > sum(p.numel() for p in vae.parameters())


def test_training_moves_the_decoder_alone():
    torch.manual_seed(0)
    vae = build_vae(pictures(random.Random(1), 4)).eval().requires_grad_(False)
    heard: list[int] = []
    taught = train_decoder(vae, 2, 8, 0, lambda step, loss, note: heard.append(step))
    assert heard == [1, 2]
    for name, tensor in vae.encoder.state_dict().items():
        assert torch.equal(taught.encoder.state_dict()[name], tensor)
    start = deepen(vae, BLOCKS).decoder.state_dict()
    assert all(not torch.equal(one, start[name]) for name, one in taught.decoder.state_dict().items() if one.dim() == 4)
    assert not any(p.requires_grad for p in taught.parameters())


def test_the_loss_is_pixels_and_differences():
    target = torch.zeros(1, 3, 2, 2)
    output = torch.zeros(1, 3, 2, 2)
    output[..., 0, 0] = 2.0  # of four pixels one, of two differences one each way
    assert float(decoding_loss(output, target)) == pytest.approx(0.5 + 1.0 + 0.5 + 0.5)


def test_views_are_in_the_picture_and_hold_a_subject():
    rng = random.Random(0)
    for _ in range(200):
        scene = random_scene(rng, held_out=None)
        top, left = view_of(scene, rng, 24)
        assert 0 <= top <= 24 - VIEW
        assert 0 <= left <= 24 - VIEW
        centres = [((b + d) * 12, (a + c) * 12) for a, b, c, d in scene.boxes()]
        assert any(top <= y <= top + VIEW and left <= x <= left + VIEW for y, x in centres)


def test_the_pictures_own_borders_count_and_the_views_do_not():
    whole = torch.zeros(VIEW * 4, VIEW * 4)
    whole[:-4, 4:] = 1  # at the top of the picture, and at its right
    assert torch.equal(counted(0, 24 - VIEW, 24, 4)[0], whole)
