"""Intervals for the figures that the studio reports."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Share:
    """How many of `count` were right, with the 95 % Wilson score interval (Wilson 1927)."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, hits: Sequence[bool]) -> "Share":
        """The share of true entries; raises ValueError where there are none."""
        if not hits:
            raise ValueError("a share of nothing")
        n, p, z = len(hits), sum(hits) / len(hits), 1.959964
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return cls(p, max(0.0, middle - half), min(1.0, middle + half), n)

    def rounded(self) -> dict[str, float]:
        """As a JSON object of three decimals."""
        return {name: round(value, 3) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def difference(one: Share, other: Share) -> Share:
    """`one` less `other`, of other pictures, with the 95 % interval of Newcombe 1998 (Stat. Med. 17, method 10)."""
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Share(value, low, high, one.count + other.count)


@dataclass(frozen=True)
class Mean:
    """The mean of `count` values, with a 95 % percentile bootstrap interval (Efron 1979) that draws whole groups.

    Values of one group are not taken to be independent, so one group alone has no interval. Differences of paired
    values give a paired interval.
    """

    value: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float], groups: Sequence[object], draws: int = 4000) -> "Mean":
        """The mean of values, each of which belongs to a group; raises ValueError where there are none."""
        if not values:
            raise ValueError("a mean of nothing")
        mean, names = sum(values) / len(values), {group: n for n, group in enumerate(dict.fromkeys(groups))}
        if len(names) == 1:
            return cls(mean, None, None, len(values))
        member = [names[group] for group in groups]
        sums, sizes = np.bincount(member, values), np.bincount(member)
        chosen = np.random.default_rng(0).integers(len(names), size=(draws, len(names)))
        low, high = np.quantile(sums[chosen].sum(1) / sizes[chosen].sum(1), (0.025, 0.975))
        return cls(mean, float(low), float(high), len(values))

    def rounded(self) -> dict[str, Any]:
        """As a JSON object of three decimals; `low` and `high` null where there is no interval."""
        return {name: None if value is None else round(value, 3) for name, value in asdict(self).items()}
