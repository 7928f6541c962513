import dataclasses
import statistics

import pytest
import torch

from studio.pipelines.auto_masks import AutoMasks, contended, contrasted, grown, likeness, territories


def blob(size, middle, wide=0.12) -> torch.Tensor:
    """A bump on the grid, its middle and width in sides of it."""
    y, x = torch.meshgrid(*(torch.arange(n) / n + 0.5 / n for n in size), indexing="ij")
    return torch.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / (2 * wide**2))


def parts(size, *middles) -> torch.Tensor:
    """[1, k, h, w]"""
    return torch.stack([blob(size, middle) for middle in middles])[None]


def features(owners: torch.Tensor) -> torch.Tensor:
    """[1, P, D]: the same direction for pixels of one owner, orthogonal to those of others."""
    return torch.nn.functional.one_hot(owners.flatten().long())[None].float() * 3 + 0.01


@pytest.mark.parametrize("size", [(24, 40), (17, 23), (12, 12)])
@pytest.mark.parametrize("likeness", [0.0, 0.75])
def test_two_bumps_become_two_places_and_ground(size, likeness):
    grid = (-(-size[0] // 2), -(-size[1] // 2))
    words = parts(grid, (0.5, 0.25), (0.5, 0.75))
    owners = torch.full(grid, 2)
    for n in range(2):
        owners[words[0, n] > 0.4] = n
    masks = AutoMasks(likeness=likeness, margin=0)(words, [features(owners)], size)
    assert masks.shape == (1, 3, *size)
    assert torch.equal(masks.sum(1), torch.ones(1, *size))
    assert set(masks.unique().tolist()) == {0, 1}
    for n, (left, right) in enumerate(((0.0, 0.5), (0.5, 1.0))):
        x = masks[0, n].nonzero()[:, 1]
        assert len(x) > 0.02 * size[0] * size[1]
        assert left <= float(x.float().mean()) / size[1] < right
        assert masks[0, n, size[0] // 2, int(size[1] * (0.25 + n / 2))] == 1
    assert masks[0, 2, [0, -1]].all()


def test_scale_and_order_change_nothing():
    grid, make = (9, 12), AutoMasks()
    words = parts(grid, (0.4, 0.3), (0.6, 0.7)) + 0.05
    alike = [torch.randn(1, 108, 5, generator=torch.Generator().manual_seed(0))]
    found = make(words, alike, (18, 24))
    assert torch.equal(make(words * 10, [alike[0] * 10], (18, 24)), found)
    assert torch.equal(make(words * torch.tensor([10.0, 0.1])[None, :, None, None], alike, (18, 24)), found)
    assert torch.equal(make(words.flip(1), alike, (18, 24)), found[:, [1, 0, 2]])
    both = make(torch.cat([words, words.flip(1)]), [alike[0].repeat(2, 1, 1)], (18, 24))
    assert torch.equal(both, torch.cat([found, found[:, [1, 0, 2]]]))


def test_a_bright_pixel_elsewhere_is_voted_down():
    words = parts((12, 12), (0.5, 0.25), (0.5, 0.75))
    words[0, 0, 6, 9] = 3.0  # in the middle of the other's
    masks = AutoMasks(likeness=0, margin=0)(words, [], (12, 12))
    assert masks[0, :, 6, 9].tolist() == [0, 1, 0]


def test_who_wins_nothing_has_its_anchors():
    words = parts((10, 10), (0.5, 0.5), (0.5, 0.5))
    words[0, 1] = words[0, 1] * 1e-3 + 1e-9 * blob((10, 10), (0.1, 0.1))
    masks = AutoMasks()(words, [], (10, 10))
    assert masks.flatten(2).sum(2)[0, :2].min() > 0
    flat = AutoMasks()(torch.zeros(1, 2, 6, 6), [torch.zeros(1, 36, 3)], (12, 12))
    assert flat.isfinite().all()


def test_the_contrast_by_loops():
    words = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = contrasted(words)
    for picture in range(2):
        shares = [words[picture, c] / words[picture, c].sum() for c in range(3)]
        for c in range(3):
            own = 3 * shares[c] - sum(shares[j] for j in range(3) if j != c)
            torch.testing.assert_close(found[picture, c], own)


def test_likeness_by_loops():
    rng = torch.Generator().manual_seed(0)
    some, anchors = torch.randn(2, 6, 4, generator=rng), torch.randint(6, (2, 3, 2), generator=rng)
    found = likeness(some, anchors)
    for picture in range(2):
        for c in range(3):
            mean = torch.stack(
                [
                    torch.stack([torch.cosine_similarity(some[picture, a], some[picture, q], dim=0) for q in range(6)])
                    for a in anchors[picture, c]
                ]
            ).mean(0)
            stretched = (mean - mean.min()) / (mean.max() - mean.min())
            torch.testing.assert_close(found[picture, c], stretched)


def test_without_votes_and_pull_scores_stay():
    scores = torch.rand(1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(contended(scores, 5, 0, 0), scores)
    assert torch.equal(contended(scores, 0, 1, 1), scores)
    uniform = contended(torch.zeros(1, 2, 5, 5), 3, 0, 1.0)  # the pull alone: the squared distance from the middle
    assert uniform[0, 0, 2, 2] == pytest.approx(0, abs=1e-6)
    assert uniform[0, 0, 0, 4] == pytest.approx(-2 * 0.4**2, abs=1e-5)
    assert not uniform[0, 1].any()


def test_masks_grow_over_the_ground_only():
    masks = torch.zeros(1, 3, 1, 6)
    masks[0, 0, 0, 0] = masks[0, 1, 0, 1] = masks[0, 1, 0, 4] = 1
    masks[0, 2] = 1 - masks[0, :2].sum(0)
    found = grown(masks, torch.zeros(1, 3, 1, 6))
    assert found[0].flatten(1).argmax(0).tolist() == [0, 1, 1, 1, 1, 1]
    torch.testing.assert_close(found.sum(1), torch.ones(1, 1, 6))
    wide = AutoMasks(margin=1)(parts((12, 12), (0.5, 0.5)), [], (12, 12))
    slim = dataclasses.replace(AutoMasks(), margin=0)(parts((12, 12), (0.5, 0.5)), [], (12, 12))
    assert (wide[0, 0] >= slim[0, 0]).all()
    assert wide[0, 0].sum() > slim[0, 0].sum()


def test_between_two_abreast_the_line_is_upright_though_one_is_lower_and_between_two_aslant_it_is_not():
    for below, lines in ((1, 1), (8, 16)):
        masks = torch.zeros(1, 2, 16, 16)
        masks[0, 0, 1:7, 1:7] = masks[0, 1, 1 + below : 7 + below, 9:15] = 1
        borders = {int(row.sum()) for row in territories(masks)[0, 0]}
        assert len(borders) == lines
    assert len({int(row.sum()) for row in territories(masks.transpose(2, 3))[0, 0]}) == 16


def test_every_pixel_belongs_to_the_nearest_disc():
    masks = torch.zeros(1, 3, 8, 12)
    masks[0, 0, 2:6, 1:5] = masks[0, 1, 1, 10] = masks[0, 2, 6:8, 8:12] = 1
    discs = [(4.0, 3.0, 16), (1.5, 10.5, 1), (7.0, 10.0, 8)]  # middle and area
    across, down = (statistics.pvariance(one) for one in ((3.0, 10.5, 10.0), (4.0, 1.5, 7.0)))
    found = territories(masks)[0]
    for y in range(8):
        for x in range(12):
            off = [down / across * (y + 0.5 - a) ** 2 + (x + 0.5 - b) ** 2 - area / 3.14159265 for a, b, area in discs]
            assert found[:, y, x].tolist() == [float(n == off.index(min(off))) for n in range(3)]
