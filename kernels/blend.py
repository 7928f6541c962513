"""Many predictions made one, and guided, in one pass over them: E = sum of W_b E_b, then u + guidance (c - u).

Guidance is linear and the weights W are the same with words and without, so a number of the result needs one read of
each prediction and one write.
"""

import torch

from studio.kernels.blend_triton import blend_by_triton
from studio.kernels.triton_support import compiles_for, wide

Tensor = torch.Tensor


def reference(predictions: Tensor, weights: Tensor, guidance: float) -> Tensor:
    """Predictions [S, 1 or 2, n, C, H, W], of two without words first, and weights [S, n or 1, H or 1, W or 1] ->
    [n, C, H, W]. In at least float32: in half precision shares that sum to one would not."""
    exact = wide(predictions.dtype)
    combined = (predictions.to(exact) * weights[:, None, :, None].to(exact)).sum(0)
    guided = combined[0] if len(combined) == 1 else combined[0] + guidance * (combined[1] - combined[0])
    return guided.to(predictions.dtype)


def blend(predictions: Tensor, weights: Tensor, guidance: float) -> Tensor:
    """The same; where one branch is all there is, no weight is applied."""
    if compiles_for(predictions, weights):
        return blend_by_triton(predictions, weights, guidance)
    if len(predictions) == 1:
        only = predictions[0]
        return only[0] if len(only) == 1 else only[0] + guidance * (only[1] - only[0])
    return reference(predictions, weights, guidance)


def bytes_moved(branches: int, conditions: int, numbers: int, size: int) -> int:
    """Of a result of that many `numbers`, `size` bytes each, without the weights."""
    return numbers * size * (branches * conditions + 1)
