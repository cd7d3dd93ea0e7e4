from __future__ import annotations

import math
from unittest import mock

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


def known(per_launch: list[np.ndarray], seed: int = 0) -> stats.Interval:
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
    monkeypatch.setattr(stats, "_LARGE", 2000)
    stats._draws.cache_clear()
    long_way = known(samples)
    stats._draws.cache_clear()
    monkeypatch.setattr(stats, "_LARGE", 100)
    short_way = known(samples)
    assert short_way[:2] == pytest.approx(long_way[:2], rel=0.02)


@pytest.mark.parametrize("size", [6, 7, 50, 199, 200, 201, 1000])
def test_medians_of_resamples_are_those_of_drawing_and_sorting(size: int) -> None:
    """To the bit: intervals in files, made when each resample was drawn and sorted, stay as they are."""
    rng = np.random.default_rng(size)
    arrays = [rng.lognormal(0, 0.1, size).round(2), rng.lognormal(0, 0.1, size)]  # the first has equal values
    drawn = np.random.default_rng(18)
    for values, found in zip(arrays, stats._resampled_medians(arrays, 18), strict=True):
        if size > 200:
            places = drawn.beta((size + 1) / 2, (size + 1) / 2, size=2000)
            expected = np.sort(values)[(places * size).astype(int)]
        else:
            expected = np.median(values[drawn.integers(0, size, size=(2000, size))], axis=1)
        assert np.array_equal(found, expected)


def test_samples_on_disk_become_the_slowest_ranks() -> None:
    from commbench.analysis import sample_files

    line = b'{"case_id": "a", "launch": 0, "time_us": [[1, 2], [5, 3]], "host_us": [[0, 0], [0, 0]], "other": 1}'
    samples = sample_files.parse(line)
    assert samples.case_id == "a" and samples.slowest_us.tolist() == [2.0, 5.0]


def test_p95_is_given_only_where_it_is_not_the_maximum() -> None:
    assert stats.p95(np.arange(19.0)) is None
    assert stats.p95(np.arange(1, 101.0)) == 95.0


def test_relative_half_width() -> None:
    assert stats.relative_half_width(np.array([1.0, 1.0])) == math.inf
    assert stats.relative_half_width(np.full(10, 3.0)) == 0.0
    assert stats.relative_half_width(np.array([10.0, 8, 12, 9, 11, 10])) == pytest.approx(0.2)


def test_neighbours_that_are_alike_count_as_fewer() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(100, 3, 400)
    wandering = [white[0]]
    for step in rng.normal(0, 3 * 0.6, 399):  # AR(1) of 0.8, with the same spread
        wandering.append(100 + 0.8 * (wandering[-1] - 100) + step)
    assert 0.7 * 400 <= stats.effective_samples(white) <= 400
    assert 0.06 * 400 <= stats.effective_samples(np.array(wandering)) <= 0.2 * 400  # 1/9 in the long run
    assert stats.effective_samples(np.full(50, 3.0)) == 50 and stats.effective_samples(np.tile([1.0, 2.0], 25)) == 50
    spiky = np.array(wandering) * np.where(rng.random(400) < 0.05, 10, 1)
    assert stats.effective_samples(spiky) <= 0.3 * 400, "spikes hide nothing"
    width = stats.relative_half_width
    assert width(np.array(wandering)) > 2 * width(rng.permutation(wandering))


@pytest.mark.parametrize("kind", ["transient", "states"])
def test_an_order_that_means_something_is_no_precise_median(kind: str) -> None:
    """Twenty samples whose spread is the same in another order tell the median better."""
    transient = 100 + 12 * np.exp(-np.arange(20) / 8) + np.tile([0.0, 0.5], 10)
    samples = transient if kind == "transient" else np.repeat([100.0, 110.0, 101.0, 111.0], 5)
    rng = np.random.default_rng(1)
    mixed = [stats.relative_half_width(rng.permutation(samples)) for _ in range(9)]
    assert stats.relative_half_width(samples) > 1.5 * np.median(mixed)


def test_two_levels_that_last_are_seen_whatever_noise_they_have() -> None:
    """Series that change in 1 of 20 calls by 22 %: of 200, 31 were stopped at 20 samples of which some were slow."""
    rng = np.random.default_rng(0)
    early = 0
    for _ in range(200):
        states = (np.cumsum(rng.random(20) < 0.05) + rng.integers(2)) % 2
        samples = 100 * np.exp(0.2 * states + rng.normal(0, 0.01, 20))
        early += 0 < states.sum() < 20 and stats.relative_half_width(samples) <= 0.02
    assert early <= 0.08 * 200
    lasting, mixed = np.repeat([100.0, 122.0], [16, 4]), np.tile([100.0, 100.0, 122.0, 100.0, 100.0], 4)
    noise = rng.normal(0, 0.5, 20)
    assert stats.effective_samples(lasting + noise) < 5 and stats.effective_samples(mixed + noise) == 20
    for spikes in (0.0, 0.05, 0.2):
        for _ in range(100):
            samples = 100 * np.exp(rng.normal(0, 0.03, 40)) * (1 + (rng.random(40) < spikes) * rng.exponential(0.5, 40))
            with mock.patch.object(stats, "_levels", lambda samples, ordered: None):
                before = stats.effective_samples(samples)
            assert stats.effective_samples(samples) > 0.8 * before, "spikes are no level"


# Ratios


@given(
    st.lists(st.tuples(times, times), min_size=1, max_size=8),
    st.booleans(),
)
def test_the_interval_of_a_ratio_holds_it_or_is_not_given(
    pairs: list[tuple[list[float], list[float]]], same: bool
) -> None:
    baseline = [np.array(one) for one, _ in pairs]
    other = baseline if same else [np.array(two) for _, two in pairs]
    point, found = stats.median_ratio(baseline, other), stats.ratio(baseline, other)
    assert point is not None and (point == 1.0 or not same)
    back = stats.median_ratio(other, baseline)
    assert back is not None and back * point == pytest.approx(1), "the same from the other side"
    if len(pairs) < 6 and min(map(len, [*baseline, *other])) < 6:
        assert found is None
        return
    assert found is not None and found.interval is not None
    low, high, of = found.interval
    assert low <= found.value <= high and found.value == point
    assert of == ("launches" if len(pairs) >= 6 else "samples")


def test_the_ratio_is_of_each_launch_with_itself() -> None:
    """A launch that is slow as a whole is slow in both arms: it does not blur the ratio, though it blurs the times."""
    rng = np.random.default_rng(2)
    drift = rng.lognormal(0, 0.5, 10)
    baseline = [2 * factor * rng.lognormal(0, 0.01, 20) for factor in drift]
    other = [factor * rng.lognormal(0, 0.01, 20) for factor in drift]
    found = stats.ratio(baseline, other)
    assert found is not None and found.interval is not None
    assert 1.97 < found.interval.low < 2 < found.interval.high < 2.03
    low, high, _ = known(baseline)
    assert high > 1.3 * low


def test_the_ratio_by_hand() -> None:
    one = [np.array([v]) for v in (4.0, 6, 8)]
    assert stats.median_ratio(one, [np.array([v]) for v in (2.0, 2, 2)]) == pytest.approx(3)
    assert stats.median_ratio(one[:2], [np.array([v]) for v in (2.0, 2)]) == pytest.approx(math.sqrt(6))


@pytest.mark.parametrize("pairs", [6, 7, 8, 10, 20])
def test_coverage_of_the_true_ratio_over_launches(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    hits = 0
    for trial in range(300):
        drift = rng.lognormal(0, 0.3, pairs)
        baseline = [np.array([1.5 * factor * rng.lognormal(0, 0.1)]) for factor in drift]
        other = [np.array([factor * rng.lognormal(0, 0.1)]) for factor in drift]
        found = stats.ratio(baseline, other, seed=trial)
        assert found is not None and found.interval is not None
        hits += found.interval.low <= 1.5 <= found.interval.high
    assert hits / 300 >= 0.92


@pytest.mark.parametrize(("launches", "samples"), [(1, 6), (1, 7), (1, 20), (1, 300), (3, 8), (5, 20)])
def test_coverage_of_the_true_ratio_over_samples(launches: int, samples: int) -> None:
    rng = np.random.default_rng(samples)
    hits = 0
    for trial in range(300):
        baseline = [0.8 * rng.lognormal(0, 0.3, samples) for _ in range(launches)]
        other = [rng.lognormal(0, 0.3, samples) for _ in range(launches)]
        found = stats.ratio(baseline, other, seed=trial)
        assert found is not None and found.interval is not None
        hits += found.interval.low <= 0.8 <= found.interval.high
    assert hits / 300 >= 0.9


def test_what_has_no_ratio() -> None:
    some, few, nothing = np.full(6, 2.0), np.full(5, 2.0), np.zeros(6)
    assert stats.ratio([], []) is None and stats.median_ratio([], []) is None
    assert stats.ratio([some], [few]) is None and stats.median_ratio([some], [few]) == 1.0
    assert stats.ratio([some], [nothing]) is None and stats.median_ratio([nothing], [some]) is None
    assert stats.ratio([nothing] * 6, [some] * 6) is None
    assert stats.ratio([some] * 6, [few] * 6) == (1.0, (1.0, 1.0, "launches")), "only medians are resampled"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.01, 2.0, "faster"),
        (0.5, 0.99, "slower"),
        (0.9, 1.1, "no difference"),
        (1.0, 1.1, "no difference"),
        (None, None, "not estimable"),
    ],
)
def test_verdicts(low: float | None, high: float | None, said: str) -> None:
    assert stats.verdict(low, high) == stats.verdict(low, high, 0.05) == said
    assert stats.verdict(low, high, None) == "not estimable", "too few launches"
    assert stats.verdict(low, high, 0.06) == ("no difference" if low else "not estimable")


def test_what_a_verdict_takes_is_said() -> None:
    assert stats.missing_launches(6) == ""
    assert stats.missing_launches(3) == "3 launches, 6 are needed for a verdict: launches=6"
    assert stats.missing_launches(1).startswith("1 launch, 6 are needed")
