import math

import pytest
import torch

from studio.errors import UsageError
from studio.pipelines.box_losses import Place, blurred, missing, places, straying, unfilled
from studio.regions import Box, Layout

FIVE = slice(1, 6)


def place(rows: slice, columns: slice, size=(8, 8)) -> Place:
    owns = torch.zeros(size, dtype=torch.float64)
    owns[rows, columns] = 1
    return Place(owns, rows, columns)


def flat(value: float, size=(8, 8)) -> torch.Tensor:
    return torch.full((1, 1, *size), value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((16, 32), (2, 16), (0, 5)), ((64, 128), (8, 64), (0, 20)), ((8, 16), (1, 8), (0, 2))],
)
def test_a_box_of_the_authors_on_their_grids(size, rows, columns):
    box = Box(0, 61 / 512, 160 / 1024, 1)
    (found,) = places(Layout({"milo": box}), ["milo"], size)
    assert (found.rows, found.columns) == (slice(*rows), slice(*columns))
    assert found.owns.sum() == (rows[1] - rows[0]) * (columns[1] - columns[0])


def test_the_one_in_front_owns_what_boxes_share():
    layout = Layout({"milo": Box(0, 0, 0.75, 1), "rex": Box(0.5, 0, 1, 1)})
    milo, rex = places(layout, ["milo", "rex"], (4, 4))
    assert (milo.columns, rex.columns) == (slice(0, 3), slice(2, 4))
    assert milo.owns.sum() == 4 * 2
    assert rex.owns.sum() == 4 * 2
    assert milo.bell[:, 2].sum() == 0


def test_a_box_below_a_cell_is_an_error():
    with pytest.raises(UsageError, match="smaller than a cell"):
        places(Layout({"milo": Box(0.01, 0, 0.02, 1)}), ["milo"], (4, 4))


def test_the_bell_is_highest_in_the_middle():
    odd, even = place(FIVE, FIVE).bell, place(slice(0, 4), slice(0, 4)).bell
    assert odd[3, 3] == 1
    assert odd[1, 3].item() == pytest.approx(math.exp(-0.5), abs=1e-9)
    assert odd[5, 1].item() == pytest.approx(math.exp(-1), abs=1e-9)
    assert (odd > 0).sum() == 25
    assert torch.allclose(even[1:3, 1:3], torch.ones(2, 2, dtype=torch.float64))
    assert even[0, 0].item() == pytest.approx(0.4111, abs=1e-4)
    assert place(slice(2, 3), slice(2, 3)).bell[2, 2] == 1


def test_the_blur_of_a_point_and_of_flat_maps():
    point = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    point[..., 2, 2] = 1
    found = blurred(point)[0, 0]
    assert [found[2, 2].item(), found[2, 1].item(), found[1, 1].item()] == pytest.approx(
        [0.33191, 0.12210, 0.04492], abs=1e-5
    )
    assert found.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(blurred(flat(0.3)), flat(0.3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("value", "loss"), [(1.0, 0.752020), (0.5, 4.376010)])
def test_enhancement_of_flat_maps(value, loss):
    assert 8 * missing(blurred(flat(value)), place(FIVE, FIVE), 0.2).item() == pytest.approx(loss, abs=1e-5)


def test_enhancement_looks_at_the_strongest_cells_of_the_box_alone():
    maps = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    box = place(slice(2, 6), slice(1, 8))
    weighed = (maps * box.bell)[..., 2:6, 1:8].flatten(2)
    truth = 1 - weighed.sort(2, descending=True).values[..., :5].mean(2)  # a fifth of 28 cells
    torch.testing.assert_close(missing(maps, box, 0.2), truth)


def test_filling_of_flat_maps():
    box = place(FIVE, FIVE)
    assert 2 * unfilled(flat(0.5), box).item() == pytest.approx(2 * 0.625, abs=1e-9)  # 0.625 along each side
    assert unfilled(flat(1.0), box).item() == 0


def test_looks_that_stray():
    box = place(FIVE, FIVE)
    looks = torch.full((1, 64, 64), 1 / 64, dtype=torch.float64)
    assert 10 * straying(looks, box, 0.2).item() == pytest.approx(0.15625, abs=1e-12)
    inside = box.owns.flatten()
    at_home = (inside / inside.sum()).expand(1, 64, 64)
    assert straying(at_home, box, 0.2).item() == 0
    whole = place(slice(0, 8), slice(0, 8))
    assert straying(looks, whole, 0.2).item() == 0


def test_a_single_cell_still_counts():
    cell = place(slice(2, 3), slice(2, 3))
    found = missing(flat(0.25), cell, 0.2), unfilled(flat(0.25), cell), straying(flat(0.1, (64, 64))[0], cell, 0.2)
    assert [one.item() for one in found] == pytest.approx([0.75, 2 * 0.75 / 8, 0.1])
