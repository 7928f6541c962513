"""Scores against the formulas written out with numpy, and against pictures of which the answer is known."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from studio.metrics import Guards, clip_score, cropped, distance, diversity, leaks, likeness, margins
from studio.regions import Box


def units(count: int, seed: int, size: int = 7) -> torch.Tensor:
    drawn = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def cosines(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    a, b = one.double().numpy(), other.double().numpy()
    return (a[:, None] * b[None]).sum(-1) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


def test_clip_score_is_torchmetrics_formula():
    """Its `_clip_score_update`: 100 times the sum of products of normalised features; `compute` takes 0 for less."""
    images, texts = units(50, 0), units(50, 1)
    expected = np.maximum(100 * np.diag(cosines(images, texts)), 0)
    np.testing.assert_allclose(clip_score(images, texts).numpy(), expected, atol=1e-4)
    assert (expected == 0).any()


def test_likeness_is_the_mean_over_all_references():
    images, references = units(3, 0), units(4, 1)
    np.testing.assert_allclose(likeness(images, references).numpy(), cosines(images, references).mean(1), atol=1e-6)


def test_a_margin_is_to_the_best_of_the_others():
    images, own, others = units(5, 0), units(2, 1), [units(3, 2), units(4, 3)]
    best = np.maximum(*(cosines(images, one).mean(1) for one in others))
    np.testing.assert_allclose(margins(images, own, others).numpy(), cosines(images, own).mean(1) - best, atol=1e-6)
    assert (margins(own[:1], own[:1], others) > 0).all()
    with pytest.raises(ValueError, match="nothing"):
        margins(images, own, [])


def test_what_has_come_from_another_place_leaks():
    one, other = units(1, 0), units(1, 1)
    apart = leaks([one, other], [one, other])[0]
    assert (apart.diagonal() == 0).all()
    assert apart[0, 1] < 0
    assert apart[1, 0] < 0
    swapped = leaks([other, other], [one, other])[0]  # the place of the first shows the second
    assert swapped[0, 1] > 0
    assert swapped[0, 1].item() == pytest.approx(1 - float(one @ other.T), abs=1e-6)
    assert swapped[1, 0] < 0


def test_distance_is_the_mean_of_squares_between_unit_vectors():
    one, other = ([torch.randn(2, 5, 3, 4), torch.randn(2, 6, 2, 2)] for _ in range(2))
    expected = []
    for a, b in zip(one, other, strict=True):
        a, b = a.double().numpy(), b.double().numpy()
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        expected.append(((a - b) ** 2).sum(1).mean((1, 2)))
    np.testing.assert_allclose(distance(one, other).numpy(), np.mean(expected, axis=0), atol=1e-6)


def test_copies_are_not_diverse():
    maps = [torch.randn(1, 5, 3, 3).expand(4, -1, -1, -1)]
    assert diversity(maps) == 0
    two = [torch.randn(2, 5, 3, 3)]
    assert diversity(two) == pytest.approx(float(distance([two[0][:1]], [two[0][1:]])))
    with pytest.raises(ValueError, match="fewer"):
        diversity([torch.randn(1, 5, 3, 3)])


def test_guards_fall_with_blur_and_rise_with_colour():
    pixels = np.random.default_rng(0).integers(60, 190, (32, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert Guards.of(picture.filter(ImageFilter.GaussianBlur(1))).sharpness < Guards.of(picture).sharpness / 4
    assert Guards.of(Image.new("RGB", (8, 8), (255, 0, 0))) == Guards(0.0, 1.0)
    assert Guards.of(Image.new("RGB", (8, 8), (90, 90, 90))).saturation == 0


def test_the_laplacian_of_a_dot():
    """A white pixel on black gives 4 at its place and -1 at its four sides, in a field of 7 x 7."""
    picture = Image.new("L", (9, 9))
    picture.putpixel((4, 4), 255)
    values = np.zeros(49)
    values[:5] = [4 * 255, *[-255] * 4]
    assert Guards.of(picture).sharpness == pytest.approx(values.var())


def test_a_crop_is_the_boxs_part():
    picture = Image.new("RGB", (10, 20), "white")
    picture.paste("red", (5, 0, 10, 20))
    assert cropped(picture, Box(0.5, 0, 1, 1)).getcolors() == [(100, (255, 0, 0))]
    assert cropped(picture, Box(0.0, 0.0, 0.01, 0.01)).size == (1, 1)
