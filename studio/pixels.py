"""Pictures as numbers, for networks."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def tensor_of(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size as [n, 3, H, W] in [-1, 1]."""
    arrays = np.stack([np.asarray(one) for one in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div(127.5).sub(1)
