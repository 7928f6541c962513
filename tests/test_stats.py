"""Wilson's interval against its published form and its limits."""

import math

import pytest

from studio.stats import Share


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
