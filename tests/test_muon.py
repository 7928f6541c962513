from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import nn

from studio.trainers import muon
from studio.trainers.muon import Muon, matrices_of, orthogonalised
from studio.trainers.processes import ALONE


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
    assert values.min() > 0.68
    assert values.max() < 1.14


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
    first = Muon([*net.parameters()][:1], 0.01)
    grads = torch.randn(4, *net.weight.shape)

    def run(net: nn.Conv2d, optimizer: Muon, some: torch.Tensor) -> None:
        for grad in some:
            net.weight.grad = grad.clone()
            optimizer.step()

    run(net, first, grads[:2])
    other = deepcopy(net)
    resumed = Muon([*other.parameters()][:1], 0.5)
    resumed.load_state_dict(deepcopy(first.state_dict()))
    run(net, first, grads[2:])
    run(other, resumed, grads[2:])
    assert torch.equal(net.weight, other.weight)


def test_vectors_and_named_layers_are_left_to_others():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.GroupNorm(1, 3), nn.Conv2d(3, 2, 1))
    matrices, rest = matrices_of(net, ("2.",))
    assert [id(p) for p in matrices] == [id(net[0].weight)]
    assert len(rest) == len(list(net.parameters())) - 1


class Sharing:
    """A team of threads."""

    def __init__(self, rank: int, told: list[list[torch.Tensor]], all_told: Barrier) -> None:
        self.rank, self.size, self.told, self.all_told = rank, len(told), told, all_told

    def average(self, tensors: list[torch.Tensor]) -> None:
        self.told[self.rank] = [one.clone() for one in tensors]
        self.all_told.wait()
        for one, *same in zip(tensors, *self.told, strict=True):
            one.copy_(torch.stack(same).mean(0))


def test_a_team_takes_the_step_of_one_and_computes_each_matrix_once(monkeypatch):
    torch.manual_seed(4)
    start, grads = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(muon, "orthogonalised", lambda m: (asked.append(m), orthogonalised(m))[1])

    def moved(team: Any) -> list[nn.Parameter]:
        net = [nn.Parameter(one.clone()) for one in start]
        for one, grad in zip(net, grads, strict=True):
            one.grad = grad.clone()
        muon.Muon(net, 0.1, team=team).step()
        return net

    alone = moved(ALONE)
    asked.clear()
    told, barrier = [list[torch.Tensor]() for _ in range(3)], Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        all_three = list(pool.map(lambda rank: moved(Sharing(rank, told, barrier)), range(3)))
    assert len(asked) == len(start)
    for net in all_three:
        torch.testing.assert_close(torch.stack(list(net)), torch.stack(list(alone)))
