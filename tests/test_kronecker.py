# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
import pytest
import torch
from soaking import SOAK

from studio.kernels.kronecker import (
    _FusedKronecker,
    b_comes_first,
    bytes_moved,
    conv_reference,
    flops,
    fused,
    kronecker_conv,
    kronecker_linear,
    pays,
    product,
    reference,
)
from studio.kernels.kronecker_triton import kronecker_by_triton

SHAPES = [(2, 3, 5, 4), (1, 6, 4, 1), (8, 2, 1, 7), (4, 4, 4, 4), (2, 9, 9, 2)]


@pytest.mark.parametrize("layout", ["kron", "ibm"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 5)])
def test_the_vec_trick_is_the_dense_product(shape, layout, lead):
    a1, a2, b1, b2 = shape
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*size, generator=rng, dtype=torch.float64) for size in ((a1, a2), (b1, b2)))
    x = torch.randn(*lead, a2 * b2, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(kronecker_linear(x, a, b, layout), reference(x, a, b, layout), atol=1e-12, rtol=0)


def test_the_reference_is_torchs_product_and_its_shuffled_rows():
    a, b = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    x = torch.randn(10, dtype=torch.float64)
    plain = torch.kron(a, b) @ x
    torch.testing.assert_close(reference(x, a, b), plain)
    shuffled = torch.stack([plain[q * 4 + p] for p in range(4) for q in range(3)])
    torch.testing.assert_close(reference(x, a, b, "ibm"), shuffled)


@pytest.mark.parametrize("layout", ["kron", "ibm"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_by_groups_is_the_dense_one_in_value_and_gradients(shape, layout, kernel):
    a1, a2, b1, b2 = shape
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(a1, a2, generator=rng), torch.randn(b1, b2, kernel, kernel, generator=rng)
    x = torch.randn(2, a2 * b2, 6, 5, generator=rng)
    x, a, b = inputs = [one.double().requires_grad_() for one in (x, a, b)]
    geometry = {"stride": 2 if kernel == 3 else 1, "padding": kernel // 2}
    got, truth = (call(x, a, b, layout, **geometry) for call in (kronecker_conv, conv_reference))
    torch.testing.assert_close(got, truth, atol=1e-12, rtol=0)
    seed = torch.randn(got.shape, generator=rng, dtype=torch.float64)
    for mine, theirs in zip(*(torch.autograd.grad(y, inputs, seed) for y in (got, truth)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)


@pytest.mark.parametrize("layout", ["kron", "ibm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_the_vec_trick_are_those_of_the_dense_product(shape, layout):
    a1, a2, b1, b2 = shape
    rng = torch.Generator().manual_seed(1)
    sizes = ((3, a2 * b2), (a1, a2), (b1, b2))
    x, a, b = inputs = [torch.randn(*size, generator=rng, dtype=torch.float64).requires_grad_() for size in sizes]
    seed = torch.randn(3, a1 * b1, generator=rng, dtype=torch.float64)
    found = [torch.autograd.grad(call(x, a, b, layout), inputs, seed) for call in (kronecker_linear, reference)]
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)


def factors(shape, *lead):
    a1, a2, b1, b2 = shape
    rng = torch.Generator().manual_seed(2)
    sizes = ((*lead, a2 * b2), (a1, a2), (b1, b2))
    return [torch.randn(*size, generator=rng, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("layout", ["kron", "ibm"])
@pytest.mark.parametrize("shape", [*SHAPES, (20, 6, 40, 33), (64, 4, 3, 9), (1, 1, 1, 1)])
def test_one_launch_is_the_dense_product(shape, layout):
    x, a, b = factors(shape, 3, 7)
    torch.testing.assert_close(kronecker_by_triton(x, a, b, layout), reference(x, a, b, layout), atol=1e-11, rtol=0)
    single = [one.float() for one in (x[:1, :1], a.T.contiguous().T, b)]
    truth = reference(*(one.double() for one in single), layout)
    torch.testing.assert_close(kronecker_by_triton(*single, layout).double(), truth, atol=1e-3, rtol=0)


@pytest.mark.parametrize("layout", ["kron", "ibm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_its_gradients_are_finite_differences(shape, layout):
    inputs = [one.requires_grad_() for one in factors(shape, 2)]
    assert torch.autograd.gradcheck(lambda x, a, b: _FusedKronecker.apply(x, a, b, layout), inputs, fast_mode=not SOAK)


@pytest.mark.parametrize("shape", [(64, 4, 20, 320), (4, 64, 320, 20), (32, 32, 40, 40)])
def test_the_cheaper_order_is_the_one_counted(shape):
    a1, a2, b1, b2 = shape
    _, a, b = factors(shape, 1)
    work = {True: 2 * a2 * b1 * (b2 + a1), False: 2 * a1 * b2 * (a2 + b1)}  # a token, b first and a first
    assert flops(10, a, b) == 10 * work[b_comes_first(a, b)] == 10 * min(work.values())
    assert pays(a, b) is (shape == (32, 32, 40, 40))
    assert bytes_moved(10, a, b) == 8 * (10 * (a1 * b1 + a2 * b2) + a.numel() + b.numel())


def test_a_training_in_half_precision_keeps_its_factors_in_float32():
    x = torch.randn(6, 16).half()
    found, own = [], []
    for call, into in ((fused, found), (product, own)):
        a, b = (torch.randn(4, 4, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in (0, 1))
        with torch.autocast("cpu", torch.float16):
            y = call(x, a, b, "kron")
        assert y.dtype == torch.float16
        into += [y, *torch.autograd.grad(y.float().square().sum(), (a, b))]
    assert [one.dtype for one in found[1:]] == [torch.float32] * 2
    for mine, theirs in zip(found, own, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.05 * float(theirs.detach().abs().max()), rtol=0)
