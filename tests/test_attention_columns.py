# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
from itertools import product

import pytest
import torch
from soaking import SOAK

from studio.kernels.attention_columns import _Columns, attention_columns, column_mass, reference, text_masses
from studio.kernels.attention_columns_triton import chosen_keys, fits, mass_by_triton

SHAPES = [(1, 1, 1, 1, 1, 1), (2, 3, 33, 77, 40, 3), (1, 2, 130, 128, 64, 17), (1, 5, 64, 20, 8, 2)]
WAYS = ["torch", "triton"]


def problem(shape, dtype=torch.float64, seed=0, loud=1.0):
    """Query, key, value (each a part of a wider tensor, as heads are) and columns, some of them twice."""
    batch, heads, pixels, keys, width, chosen = shape
    rng = torch.Generator().manual_seed(seed)
    three = [
        torch.randn(batch, count, heads, width + 3, generator=rng).to(dtype)[..., :width].transpose(1, 2)
        for count in (pixels, keys, keys)
    ]
    columns = torch.randint(0, keys, (batch, chosen), generator=rng)
    return loud * three[0], three[1], three[2], columns, width**-0.5


def ways(way, query, key, value, columns, scale, bias=None):
    return _Columns.apply(query, key, value, columns, scale, bias, way == "triton")


@pytest.mark.parametrize(("shape", "way", "dtype"), list(product(SHAPES, WAYS, [torch.float64, torch.float32])))
def test_output_and_mass_are_those_of_all_probabilities(shape, way, dtype):
    given = problem(shape, dtype)
    found, truth = (
        ways(way, *given),
        reference(*(one.double() if torch.is_tensor(one) and one.is_floating_point() else one for one in given)),
    )
    for mine, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-12 if dtype == torch.float64 else 2e-6, rtol=0)


@pytest.mark.parametrize(("shape", "way"), list(product(SHAPES, WAYS)))
def test_gradients_are_those_of_all_probabilities(shape, way):
    *three, columns, scale = problem(shape)
    inputs = [one.clone().requires_grad_() for one in three]
    truth, found = reference(*inputs, columns, scale), ways(way, *inputs, columns, scale)
    seeds = [torch.randn(one.shape, generator=torch.Generator().manual_seed(5), dtype=one.dtype) for one in truth]
    theirs = torch.autograd.grad(truth, inputs, seeds)
    for mine, own in zip(torch.autograd.grad(found, inputs, seeds, retain_graph=True), theirs, strict=True):
        torch.testing.assert_close(mine, own, atol=1e-11, rtol=0)
    alone = ways(way, inputs[0], *(one.detach() for one in inputs[1:]), columns, scale)
    (query,) = torch.autograd.grad(alone, inputs[:1], seeds)
    torch.testing.assert_close(query, theirs[0], atol=1e-11, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_finite_differences(way):
    *three, columns, scale = problem((1, 2, 5, 4, 3, 2))
    inputs = [one.clone().requires_grad_() for one in three]
    assert torch.autograd.gradcheck(lambda *given: ways(way, *given, columns, scale), inputs, fast_mode=not SOAK)


@pytest.mark.parametrize("way", WAYS)
def test_saturated_attention_is_exact(way):
    given = problem((1, 2, 40, 77, 16, 77), loud=1e3)
    (out, mass), (true_out, true_mass) = ways(way, *given), reference(*given)
    torch.testing.assert_close(out, true_out, atol=1e-9, rtol=0)
    torch.testing.assert_close(mass, true_mass, atol=1e-9, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_all_columns_sum_to_one_and_follow_their_order(way):
    query, key, value, _, scale = problem((2, 3, 33, 10, 8, 1))
    every = torch.arange(10).expand(2, -1)
    _, mass = ways(way, query, key, value, every, scale)
    torch.testing.assert_close(mass.sum(1), torch.ones(2, 33, dtype=torch.float64), atol=1e-12, rtol=0)
    order = torch.tensor([3, 1, 4, 9, 0])
    chosen = ways(way, query, key, value, every[:, order], scale)[1]
    torch.testing.assert_close(chosen, mass[:, order], atol=1e-15, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_every_run_is_the_same_bit_for_bit(way):
    *three, columns, scale = problem((2, 3, 130, 77, 40, 3), torch.float32)
    inputs = [one.clone().requires_grad_() for one in three]

    def run():
        found = ways(way, *inputs, columns, scale)
        return [*found, *torch.autograd.grad([one.sum() for one in found], inputs)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("rows", [1, 2])
def test_a_bias_counts_and_hides(rows):
    *three, columns, scale = problem((2, 3, 33, 10, 8, 2))
    bias = torch.randn(rows, 1, 33, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias[..., 4] = -torch.inf
    inputs = [one.clone().requires_grad_() for one in three]
    found, truth = attention_columns(*inputs, columns, scale, bias), reference(*inputs, columns, scale, bias)
    for mine, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    sums = [sum(one.square().sum() for one in pair) for pair in (found, truth)]
    for mine, theirs in zip(*(torch.autograd.grad(one, inputs) for one in sums), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)
    hidden = torch.full((2, 1), 4)
    assert float(attention_columns(*three, hidden, scale, bias)[1].abs().max()) == 0


def test_the_mass_of_an_attention_that_tells_its_logsumexp():
    query, key, value, columns, scale = problem((2, 3, 33, 200, 40, 5))
    total = (scale * query @ key.transpose(2, 3)).logsumexp(3)
    truth = reference(query, key, value, columns, scale)[1]
    for way in (column_mass, mass_by_triton):
        torch.testing.assert_close(way(query, chosen_keys(key, columns), total, scale), truth, atol=1e-12, rtol=0)


def test_words_of_texts_side_by_side_are_among_their_own():
    query, key, _, _, scale = problem((2, 3, 33, 20, 8, 1))
    columns = torch.tensor([[3, 12], [19, 0]])
    found = text_masses(query, key, columns, scale, 2)
    for row, own in enumerate(columns.tolist()):
        for place, column in enumerate(own):
            text = slice(0, 10) if column < 10 else slice(10, 20)
            alone = (scale * query[row] @ key[row, :, text].transpose(1, 2)).softmax(2)[..., column % 10].mean(0)
            torch.testing.assert_close(found[row, place], alone, atol=1e-12, rtol=0)


def test_long_texts_and_wide_heads_are_left_to_the_framework():
    some = torch.zeros(1, 1, 4, 64)
    assert fits(some, torch.zeros(1, 1, 128, 64))
    assert not fits(some, torch.zeros(1, 1, 129, 64))
    assert not fits(torch.zeros(1, 1, 4, 80), torch.zeros(1, 1, 77, 80))
