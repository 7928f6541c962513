import pytest
import torch

from studio.kernels.kronecker import kronecker_linear, reference

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
