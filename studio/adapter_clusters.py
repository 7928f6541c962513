"""LoRA-LEGO: the units of several LoRAs grouped by likeness, one unit for each group (Zhao et al. 2024)."""

import torch

_STARTS, _ROUNDS = 8, 100
Tensor = torch.Tensor


def clustered(up: Tensor, down: Tensor, count: int, rank: float) -> tuple[Tensor, Tensor]:
    """(up [out, k], down [k, in]) that stand for up [out, n] and down [n, in], the units of several LoRAs.

    A minimal semantic unit is a row of down with its column of up, as one vector. k-means over all units into k =
    `count` clusters, fewer where there are fewer different units (equation 2 of arXiv 2409.16167). Then the paper's
    dual reweighting: a centroid is brought to the mean norm of the units in its cluster, as averaging shrinks it; and
    the output is multiplied by sqrt(rank / k), as its variance grows with the number of units. `rank` is that of the
    LoRAs, their mean where they differ. The order of units changes nothing.
    """
    units = torch.cat([down, up.T], 1).double()
    units = units[units.norm(dim=1).argsort(descending=True, stable=True)]
    members = _k_means(units, min(count, len(units)))
    chosen = [units[members == n] for n in members.unique()]
    means = torch.stack([cluster.mean(0) for cluster in chosen])
    norms = torch.stack([cluster.norm(dim=1).mean() for cluster in chosen])
    tiny = torch.finfo(means.dtype).tiny
    centroids = means * (norms / means.norm(dim=1).clamp(min=tiny))[:, None]
    inputs = down.shape[1]
    return (rank / len(chosen)) ** 0.5 * centroids[:, inputs:].T, centroids[:, :inputs]


def _k_means(points: Tensor, count: int) -> Tensor:
    """The cluster of each point [n]: the closest of several seeded k-means++ starts (Arthur and Vassilvitskii 2007)."""
    generator = torch.Generator().manual_seed(0)
    found = [_lloyd(points, _start(points, count, generator)) for _ in range(_STARTS)]
    return min(found, key=lambda one: one[1])[0]


def _lloyd(points: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """(cluster of each point, sum of squared distances) where Lloyd's rounds from `centres` end."""
    squares = _squares(points, centres)
    members = squares.argmin(1)
    for _ in range(_ROUNDS):
        present = members.unique()
        centres[present] = torch.stack([points[members == n].mean(0) for n in present])
        squares = _squares(points, centres)
        moved = squares.argmin(1)
        if torch.equal(moved, members):
            break
        members = moved
    return members, float(squares.amin(1).sum())


def _start(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to `count` different points, each drawn with a chance that grows with its distance from those before."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = _squares(points, points[chosen])[:, 0]
    while len(chosen) < count and nearest.any():
        chosen.append(int(torch.multinomial(nearest, 1, generator=generator)))
        nearest = torch.minimum(nearest, _squares(points, points[chosen[-1:]])[:, 0])
    return points[chosen].clone()


def _squares(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances [n, k], zero exactly for equal vectors."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
