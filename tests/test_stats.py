"""Wilson's interval against its published form and its limits; the bootstrap against the normal distribution."""

import math
import statistics

import numpy as np
import pytest

from studio.pipelines.markdown import interval
from studio.stats import Mean, Share, difference


def test_eight_of_ten_has_the_known_interval():
    share = Share.of([True] * 8 + [False] * 2)
    assert (share.value, share.count) == (0.8, 10)
    assert share.low == pytest.approx(0.4902, abs=1e-4)
    assert share.high == pytest.approx(0.9433, abs=1e-4)


def test_the_ends_solve_wilsons_equation():
    share = Share.of([True] * 3 + [False] * 37)
    for p in (share.low, share.high):
        assert abs(share.value - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / 40), abs=1e-9)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        Share.of([])


def test_a_difference_has_the_published_interval():
    """Newcombe 1998, table II: 56 of 70 against 48 of 80, and 9 of 10 against 3 of 10."""
    for (hits, count), (others, of), low, high in (
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
    ):
        one, other = (Share.of([n < h for n in range(c)]) for h, c in ((hits, count), (others, of)))
        found = difference(one, other)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_the_mean_of_single_values_has_the_interval_of_the_normal_distribution():
    values = [math.sin(n * n) for n in range(400)]
    mean = Mean.of(values, range(400))
    spread = statistics.stdev(values) / 20
    assert mean.value == pytest.approx(statistics.fmean(values))
    assert (mean.low, mean.high) == pytest.approx((mean.value - 1.96 * spread, mean.value + 1.96 * spread), abs=0.01)


def test_values_of_one_group_count_once():
    """Groups of equal values are as uncertain as one value each, and of all groups alike nothing is uncertain."""
    values = [float(n % 7) for n in range(50)]
    assert Mean.of(values * 8, list(range(50)) * 8).low == pytest.approx(Mean.of(values, range(50)).low)
    alike = Mean.of([1.0, 0.0] * 20, [n // 2 for n in range(40)])
    assert (alike.low, alike.value, alike.high, alike.count) == (0.5, 0.5, 0.5, 40)


def test_one_group_has_no_interval():
    """However many values: it says nothing of how others would differ."""
    assert Mean.of([0.0, 1.0] * 8, ["milo+rex"] * 16).rounded() == {
        "value": 0.5,
        "low": None,
        "high": None,
        "count": 16,
    }
    assert interval({"value": 0.5, "low": None, "high": None}) == "0.50"


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        Mean.of([], [])


def test_intervals_cover_what_they_should():
    """Of pictures of four seeds each of ten prompts, 300 experiments: within what chance allows of 95 %."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        values = rng.exponential(1.0, 40)  # skewed, as leaks and times are; its mean is 1
        found = Mean.of(values.tolist(), range(40), draws=500)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1 <= found.high
    assert 0.90 <= covered / 300 <= 0.97
