from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench import stats

times = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=60)


def test_median_ranks_are_the_textbook_ones() -> None:
    """Exact binomial order statistics (Hoefler and Belli, and any table): 0-based."""
    assert stats.median_ranks(5) is None
    assert stats.median_ranks(6) == (0, 5)
    assert stats.median_ranks(10) == (1, 8)
    assert stats.median_ranks(20) == (5, 14)
    assert stats.median_ranks(30) == (9, 20)
    assert stats.median_ranks(100) == (39, 60)
    low, high = stats.median_ranks(1001) or (0, 0)
    assert 0.95 <= sum(math.comb(1001, k) for k in range(low + 1, high + 1)) / 2**1001 < 0.96


@given(st.lists(times, min_size=1, max_size=8))
def test_the_interval_holds_the_estimate_or_is_not_given(launches: list[list[float]]) -> None:
    per_launch = [np.array(samples) for samples in launches]
    found = stats.interval(per_launch)
    if len(launches) < 6 and min(map(len, launches)) < 6:
        assert found is None, "fewer than 6 samples have no 95 % interval"
        return
    assert found is not None
    low, high, of = found
    assert low <= stats.median_of_medians(per_launch) <= high
    assert of == ("launches" if len(launches) >= 6 else "samples")


def known(per_launch: list[np.ndarray], seed: int = 0) -> tuple[float, float, str]:
    found = stats.interval(per_launch, seed=seed)
    assert found is not None
    return found


def test_a_launch_counts_once_however_many_samples_it_took() -> None:
    per_launch = [np.full(1000, 1.0), np.array([2.0, 2.0]), np.array([3.0])]
    assert stats.median_of_medians(per_launch) == 2.0


def test_launch_to_launch_spread_is_in_the_interval_from_six_launches() -> None:
    rng = np.random.default_rng(1)
    centres = (90, 95, 100, 105, 110, 115)
    per_launch = [centre + rng.normal(0, 0.01, 50) for centre in centres]
    low, high, _ = known(per_launch)
    assert low < 95 and high > 110
    low, high, of = known(per_launch[:5])
    assert of == "samples" and high - low < 0.1, "below six only the spread of samples is in it, and the table says so"


@pytest.mark.parametrize("launches", [6, 7, 8, 10, 20])
def test_coverage_of_the_true_median_is_95_percent_or_more(launches: int) -> None:
    """The bootstrap alone covers 87 % at 7 launches."""
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(400):
        low, high, _ = known([rng.lognormal(0, 0.3, 1) for _ in range(launches)], seed=trial)
        hits += low <= 1.0 <= high
    assert hits / 400 >= 0.93


def test_many_samples_give_the_same_interval_by_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [np.random.default_rng(3).lognormal(0, 0.5, 1501)]
    long_way = known(samples)
    monkeypatch.setattr(stats, "_LARGE", 100)
    short_way = known(samples)
    assert short_way[:2] == pytest.approx(long_way[:2], rel=0.02)


def test_samples_on_disk_become_the_slowest_ranks() -> None:
    from commbench.summary import _slowest

    case_id, slowest = _slowest('{"case_id": "a", "time_us": [[1, 2], [5, 3]], "other": 1}')
    assert case_id == "a" and slowest.tolist() == [2.0, 5.0]


def test_p95_is_given_only_where_it_is_not_the_maximum() -> None:
    assert stats.p95(np.arange(19.0)) is None
    assert stats.p95(np.arange(1, 101.0)) == 95.0


def test_relative_half_width() -> None:
    assert stats.relative_half_width(np.array([1.0, 1.0])) == math.inf
    assert stats.relative_half_width(np.full(10, 3.0)) == 0.0
    assert stats.relative_half_width(np.array([8.0, 9, 10, 10, 11, 12])) == pytest.approx(0.2)
