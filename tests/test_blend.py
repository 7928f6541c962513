import pytest
import torch

from studio.kernels.blend import blend, bytes_moved, reference
from studio.kernels.blend_triton import blend_by_triton

CASES = [(1, 2, 1, (1, 1, 1)), (3, 2, 2, (2, 7, 5)), (4, 1, 2, (1, 7, 5)), (2, 2, 3, (3, 1, 1)), (5, 2, 1, (1, 1, 1))]


def problem(branches, conditions, count, where, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    weights = torch.rand(branches, *where, generator=rng).to(dtype)
    return torch.randn(branches, conditions, count, 4, 7, 5, generator=rng).to(dtype), weights / weights.sum(0)


@pytest.mark.parametrize("case", CASES)
def test_one_launch_is_the_sum_and_the_guidance_by_loops(case):
    predictions, weights = problem(*case)
    found, others = blend_by_triton(predictions, weights, 3.5), (reference, blend)
    shares = weights.expand(-1, predictions.shape[2], 7, 5)
    for i in range(predictions.shape[2]):
        combined = [sum(shares[b, i] * predictions[b, c, i] for b in range(case[0])) for c in range(case[1])]
        truth = combined[0] if case[1] == 1 else combined[0] + 3.5 * (combined[1] - combined[0])
        torch.testing.assert_close(found[i], truth, atol=1e-12, rtol=0)
        for other in others:
            torch.testing.assert_close(other(predictions, weights, 3.5)[i], truth, atol=1e-12, rtol=0)


def test_a_branch_alone_is_guided_bit_for_bit():
    predictions, _ = problem(1, 2, 1, (1, 1, 1), torch.float32)
    u, c = predictions[0]
    assert torch.equal(blend(predictions, torch.ones(1, 1, 1, 1), 2.5), u + 2.5 * (c - u))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", [blend, reference, blend_by_triton])
def test_half_precision_is_weighed_in_float32(way, dtype):
    """Thirds of bfloat16 sum to 1.00195."""
    predictions = problem(3, 1, 1, (1, 1, 1))[0].to(dtype)
    predictions[:] = predictions[:1].clone()
    found = way(predictions, torch.full((3, 1, 1, 1), 1 / 3), 1.0)
    assert found.dtype == dtype
    assert torch.equal(found, predictions[0, 0])


def test_every_number_is_read_once():
    assert bytes_moved(5, 2, 1000, 4) == 11 * 4000
