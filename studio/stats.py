"""Intervals for the figures that the studio reports."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


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
