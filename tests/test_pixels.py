"""Pictures as tensors: values, order of axes, one row a picture."""

import torch
from PIL import Image

from studio.pixels import tensor_of


def test_black_is_minus_one_and_white_is_one_each_where_it_was():
    picture = Image.new("RGB", (4, 2))
    picture.putpixel((3, 0), (255, 0, 51))
    found = tensor_of([picture, Image.new("RGB", (4, 2), "white")])
    assert found.shape == (2, 3, 2, 4)
    assert torch.allclose(found[0, :, 0, 3], torch.tensor([1.0, -1.0, -0.6]))
    assert bool((found[0, :, 1] == -1).all())
    assert bool((found[1] == 1).all())
