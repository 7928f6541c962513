# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
from itertools import product

import pytest
import torch
from soaking import SOAK

from studio.kernels.widen import _Widened, bytes_moved, extended, flops, reference, span
from studio.kernels.widen_triton import widen_by_triton

CASES = [
    (1, 1, 1, 1, 16, 1),
    (5, 7, 2, 3, 16, 1),
    (40, 70, 5, 4, 32, 3),
    (77, 130, 4, 64, 256, 1),
    (33, 20, 0, 1, 16, 3),
]


def problem(tokens, width, k, rank, rows, layers, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    down = torch.randn(layers, rows, width, generator=rng).to(dtype)
    down[:, k * rank :] = 0
    x = torch.randn(tokens, width + 5, generator=rng).to(dtype)[:, :width]  # rows of a wider tensor
    return x, down, torch.rand(tokens, k, generator=rng).to(dtype), rank


@pytest.mark.parametrize(("case", "dtype"), list(product(CASES, [torch.float64, torch.float32])))
def test_the_kernel_is_the_reference(case, dtype):
    given = problem(*case, dtype)
    truth = reference(*(one.double() if torch.is_tensor(one) else one for one in given))
    atol = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(widen_by_triton(*given).double(), truth, atol=atol, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_one_product_is_the_layer_and_every_adapter_one_after_the_other(case):
    _, width, k, rank, rows, layers = case
    x, down, gate, _ = problem(*case)
    wide = widen_by_triton(x, down, gate, rank)
    for layer in range(layers):
        weight, up = (torch.randn(*size, dtype=torch.float64) for size in ((6, width), (rows, 6)))
        both, own, theirs = extended(weight, up, layer, layers)
        truth = x @ weight.T
        for a in range(k):
            part = slice(a * rank, (a + 1) * rank)
            truth = truth + gate[:, a, None] * (x @ down[layer, part].T @ up[part])
        found = wide[:, span(layer, layers, width, rows)] @ both.T
        torch.testing.assert_close(found, truth, atol=1e-11, rtol=0)
        assert torch.equal(own, weight)
        theirs.zero_()  # other adapters, none
        torch.testing.assert_close(wide[:, span(layer, layers, width, rows)] @ both.T, x @ weight.T, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("layers", "fused"), list(product((1, 3), (False, True))))
def test_gradients_are_finite_differences(layers, fused):
    x, down, gate, rank = problem(4, 6, 2, 3, 16, layers)
    inputs = [one.clone().requires_grad_() for one in (x, down, gate)]
    assert torch.autograd.gradcheck(lambda *given: _Widened.apply(*given, rank, fused), inputs, fast_mode=not SOAK)


def test_every_run_is_the_same_bit_for_bit():
    given = problem(*CASES[3], torch.float32)
    assert torch.equal(widen_by_triton(*given), widen_by_triton(*given))


def test_what_it_costs():
    assert flops(4096, 640, 640, 80) == 2 * 4096 * 80 * 1280
    assert bytes_moved(4096, 640, 80, 3, 2) == 2 * 4096 * (1280 + 240)
