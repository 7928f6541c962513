import pytest
import torch
import torch.nn.functional as F

from studio.kernels.multi_adapter import Factors
from studio.kernels.multi_adapter_conv import Geometry, Windows, apart, convolved, multi_adapter_conv, windowed

Case = tuple[torch.Tensor, Factors, torch.Tensor, Geometry]
GEOMETRIES = [
    Geometry((3, 3), (1, 1), (1, 1), (1, 1)),
    Geometry((3, 3), (2, 2), (1, 1), (1, 1)),
    Geometry((1, 1), (1, 1), (0, 0), (1, 1)),
    Geometry((3, 1), (1, 2), (2, 0), (2, 1)),
]


def case(geometry: Geometry, boxes, seed: int = 0) -> Case:
    """x [2, 5, 12, 14] in float64, and weights that are random inside boxes by (sample, adapter)."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 12, 14, generator=rng, dtype=torch.float64)
    down = torch.randn(3, 2, 5, *geometry.kernel, generator=rng, dtype=torch.float64)
    up = torch.randn(3, 2, 7, generator=rng, dtype=torch.float64)
    plain = F.conv2d(x, down[0], None, geometry.stride, geometry.padding, geometry.dilation)
    dense = torch.zeros(2, *plain.shape[2:], 3, dtype=torch.float64)
    for (sample, adapter), (top, bottom, left, right) in boxes.items():
        inside = dense[sample, top:bottom, left:right, adapter]
        inside.copy_(torch.rand(inside.shape, generator=rng, dtype=torch.float64))
    return x, Factors(down, up), dense, geometry


def truth(x: torch.Tensor, factors: Factors, dense: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """One adapter after the other, over the whole grid."""
    total = 0
    for a in range(3):
        kernel = torch.einsum("ro,rchw->ochw", factors.up[a], factors.down[a])
        change = F.conv2d(x, kernel, None, geometry.stride, geometry.padding, geometry.dilation)
        total = total + dense[:, None, ..., a] * change
    return torch.as_tensor(total)


BOXES = {
    "disjoint": {(b, a): (2 * a, 2 * a + 2, 0, 3) for a in range(3) for b in range(2)},
    "overlapping, of unlike sizes, at the rims": {(0, 0): (0, 3, 0, 3), (1, 0): (3, 9, 4, 7), (0, 2): (1, 2, 2, 14)},
    "an adapter a sample": {(0, 0): (0, 99, 0, 99), (1, 1): (0, 99, 0, 99)},
    "nowhere": {},
}


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
def test_both_ways_equal_the_loop_over_dense_kernels(geometry, boxes):
    x, factors, dense, _ = given = case(geometry, boxes)
    wanted = truth(*given)
    for way in (windowed, convolved, multi_adapter_conv):
        torch.testing.assert_close(way(x, factors, Windows(dense), geometry), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_samples_of_an_adapter_each_are_convolved_apart(geometry):
    x, factors, dense, _ = case(geometry, {(0, 0): (0, 99, 0, 99), (1, 1): (1, 99, 0, 2)})
    x, dense = x.repeat_interleave(3, 0), dense.repeat_interleave(3, 0)[..., :2]
    factors, windows = Factors(factors.down[:2], factors.up[:2]), Windows(dense)
    assert windows.apart
    assert not Windows(dense.flip(0)).apart
    padded = torch.nn.functional.pad(dense, (0, 1))
    wanted = truth(x, Factors(factors.down[[0, 1, 0]], factors.up[[0, 1, 0]]), padded, geometry)
    for way in (apart, multi_adapter_conv):
        torch.testing.assert_close(way(x, factors, windows, geometry), wanted, atol=1e-12, rtol=0)


def test_gradients_reach_the_input_through_windows():
    geometry = GEOMETRIES[0]
    x, factors, dense, _ = case(geometry, BOXES["disjoint"])
    x.requires_grad_()
    (mine,) = torch.autograd.grad(windowed(x, factors, Windows(dense), geometry).square().sum(), x)
    (wanted,) = torch.autograd.grad(truth(x, factors, dense, geometry).square().sum(), x)
    torch.testing.assert_close(mine, wanted)


def test_windows_are_taken_where_they_are_few():
    bands = {(b, a): (4 * a, 4 * a + 4, 0, 14) for a in range(3) for b in range(2)}
    windows = Windows(case(GEOMETRIES[0], bands)[2])
    assert (windows.size, tuple(windows.samples.shape), windows.few) == ((4, 14), (2, 3), True)
    assert len(windows.places.slots) == 1
    everywhere = Windows(torch.ones(2, 12, 14, 3))
    assert not everywhere.few
    assert Windows(case(GEOMETRIES[0], BOXES["an adapter a sample"])[2]).samples.shape[0] == 1
