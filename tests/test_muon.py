from copy import deepcopy

import pytest
import torch
from torch import nn

from studio.trainers.muon import Muon, matrices_of, orthogonalised


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16), (1, 9)])
def test_every_singular_value_goes_through_the_polynomial(shape):
    """By a decomposition in float64, and the odd polynomial of its singular values alone."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalised(matrix).double(), u * s @ vt, atol=2e-4, rtol=0)


def test_singular_values_end_near_one():
    matrix = torch.randn(16, 60, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.68 < values.min() and values.max() < 1.14


def test_nothing_stays_nothing():
    assert orthogonalised(torch.zeros(3, 5)).abs().max() == 0


def test_a_step_is_that_of_torch():
    """torch's own, which is for matrices alone and computes in bfloat16, over five steps with momentum and decay."""
    torch.manual_seed(2)
    ours = nn.Parameter(torch.randn(6, 4, 3, 3))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    start = theirs.detach().clone()
    mine = Muon([ours], 0.02, weight_decay=0.1)
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.flatten(1).clone()
        mine.step()
        torchs.step()
    apart = (ours.detach().flatten(1) - theirs.detach()).norm()
    assert apart < 0.02 * (theirs.detach() - start).norm()


def test_a_state_goes_on_bit_for_bit():
    torch.manual_seed(3)
    net = nn.Conv2d(3, 4, 3)
    muon = Muon([net.weight], 0.01)
    grads = torch.randn(4, *net.weight.shape)

    def run(net: nn.Conv2d, muon: Muon, some: torch.Tensor) -> None:
        for grad in some:
            net.weight.grad = grad.clone()
            muon.step()

    run(net, muon, grads[:2])
    other = deepcopy(net)
    resumed = Muon([other.weight], 0.5)
    resumed.load_state_dict(deepcopy(muon.state_dict()))
    run(net, muon, grads[2:])
    run(other, resumed, grads[2:])
    assert torch.equal(net.weight, other.weight)


def test_vectors_and_named_layers_are_left_to_others():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.GroupNorm(1, 3), nn.Conv2d(3, 2, 1))
    matrices, rest = matrices_of(net, ("2.",))
    assert [id(p) for p in matrices] == [id(net[0].weight)]
    assert len(rest) == len(list(net.parameters())) - 1
