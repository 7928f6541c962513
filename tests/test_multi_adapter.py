import pytest
import torch

from studio.kernels.multi_adapter import Factors, Weights, apart, placed, reference, routed, stacked


def problem(tokens: int, k: int, share: float, seed: int = 0):
    """x, factors and weights [T, k] of which about `share` are not zero, in float64."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 7, generator=rng, dtype=torch.float64)
    down = torch.randn(k, 3, 7, generator=rng, dtype=torch.float64)
    up = torch.randn(k, 3, 5, generator=rng, dtype=torch.float64)
    dense = torch.rand(tokens, k, generator=rng, dtype=torch.float64)
    return x, Factors(down, up), dense * (torch.rand(tokens, k, generator=rng) < share)


@pytest.mark.parametrize(("tokens", "k", "share"), [(11, 1, 1.0), (20, 4, 1.0), (20, 4, 0.2), (1, 3, 0.5), (9, 2, 0.0)])
def test_both_ways_equal_the_loop(tokens, k, share):
    x, factors, dense = problem(tokens, k, share)
    truth = reference(x, factors, dense)
    for way in (stacked, routed):
        onto = torch.ones_like(truth)
        torch.testing.assert_close(way(x, onto.clone(), factors, Weights(dense)), 1 + truth, atol=1e-12, rtol=0)
        with torch.no_grad():
            assert way(x, onto, factors, Weights(dense)).data_ptr() == onto.data_ptr()  # in place
        torch.testing.assert_close(onto, 1 + truth, atol=1e-12, rtol=0)


def test_the_loop_is_the_sum_of_dense_changes():
    x, factors, dense = problem(6, 3, 0.7)
    for t in range(6):
        change = torch.stack([dense[t, a] * factors.up[a].T @ factors.down[a] for a in range(3)]).sum(0)
        torch.testing.assert_close(reference(x, factors, dense)[t], change @ x[t], atol=1e-12, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_rows_are_scattered_or_gathered_to_the_same_places(share):
    _, _, dense = problem(20, 4, share)
    weights = Weights(dense)
    rows = torch.randn(weights.rows.shape[0], 5, dtype=torch.float64) * weights.share.flatten()[:, None]
    truth = torch.ones(20, 5, dtype=torch.float64)
    for row, token in enumerate(weights.rows.tolist()):
        truth[token] += rows[row]
    for gathered in (False, True):
        onto = torch.ones(20, 5, dtype=torch.float64)
        torch.testing.assert_close(placed(onto, rows, weights, gathered), truth, atol=1e-12, rtol=0)
        with torch.no_grad():
            placed(onto, rows, weights, gathered)
        torch.testing.assert_close(onto, truth, atol=1e-12, rtol=0)


def test_disjoint_regions_gather_every_token_once():
    dense = torch.eye(8).repeat_interleave(16, 0)
    weights = Weights(dense)
    assert weights.index.shape == (8, 17)  # one of them padding
    assert sorted(weights.index[:, :16].flatten().tolist()) == list(range(128))
    assert len(weights.places.slots) == 1
    assert weights.sparse


def test_branches_of_an_adapter_each_are_batched():
    x, factors, dense = problem(20, 4, 1.0)
    dense = dense * torch.eye(4).repeat_interleave(5, 0)
    dense[7] = 0  # an adapter may rest anywhere in its run
    weights = Weights(dense)
    assert weights.apart
    found = apart(x, torch.zeros(20, 5, dtype=torch.float64), factors, weights)
    torch.testing.assert_close(found, reference(x, factors, dense), atol=1e-12, rtol=0)
    for other in (dense.flip(0), dense.roll(1, 0), dense[:18], dense[:, :1], torch.ones(20, 4)):
        assert not Weights(other).apart


def test_each_way_is_taken_where_it_pays():
    assert Weights(torch.eye(4).repeat(2, 1)).cheapest is routed
    assert Weights(torch.ones(8, 4)).cheapest is stacked
    assert Weights(torch.eye(4).repeat_interleave(2, 0)).cheapest is apart


@pytest.mark.parametrize("way", [stacked, routed, apart])
def test_gradients_are_finite_differences(way):
    x, factors, dense = problem(8, 4, 1.0)
    dense = dense * torch.eye(4).repeat_interleave(2, 0)
    given = [one.requires_grad_() for one in (x, torch.zeros(8, 5, dtype=torch.float64), factors.down, factors.up)]
    assert torch.autograd.gradcheck(lambda x, onto, *pair: way(x, onto, Factors(*pair), Weights(dense)), given)
