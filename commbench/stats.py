"""Medians and their 95 % intervals. Times in, times out: bandwidth is computed last and never averaged.

After Hoefler and Belli, "Scientific Benchmarking of Parallel Computing Systems", SC'15.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LAUNCHES_FOR_INTERVAL = 6  # the range of 6 values covers their median at 96.9 %; below 6 no interval of launches exists
SAMPLES_FOR_P95 = 20  # below, the 95th percentile is just the maximum
LEVEL = 0.05  # of a family of verdicts: how often any of them may be false where nothing differs
MINIMUM_GAIN = 0.03  # that the lower end of a tuning's interval must show before the default is given up
TOO_WIDE = 10.0  # high over low of an interval, beyond which its ends say nothing
PAIRS_FOR_CLAIM = 10  # launches with both arms, below which a ratio is no claim
_FEWEST_FOR_MEDIAN = 6  # independent samples, whose range holds the median with 95 %
_FEWEST_OF_LEVEL, _SHARE_OF_LEVEL, _GAP_OF_LEVELS = 2, 0.05, 3.0
_RESAMPLES = 2000
_TAILS = (0.025, 0.975)
_FEW = 30
_LARGE = 200


class Interval(NamedTuple):
    """A 95 % interval, and what was resampled for it."""

    low: float
    high: float
    of: str  # "launches", "samples", or "messages" of all launches

    def around(self, value: float) -> Interval:
        """Return the interval, widened to hold `value`.

        Samples on disk are rounded to nanoseconds and the medians that are reported are not, so an interval of samples
        may miss the median by that much. What is reported keeps low <= value <= high.
        """
        return Interval(min(self.low, value), max(self.high, value), self.of)


class Ratio(NamedTuple):
    """A ratio of times, and its 95 % interval, None where that is not estimable."""

    value: float
    interval: Interval | None

    @property
    def low(self) -> float | None:
        return None if self.interval is None else self.interval.low

    @property
    def high(self) -> float | None:
        return None if self.interval is None else self.interval.high


@functools.lru_cache(maxsize=4096)
def median_ranks(n: int) -> tuple[int, int] | None:
    """Return the 0-based ranks that enclose the median with at least 95 %, None below n = 6 (exact binomial)."""
    if n < 6:
        return None
    if n > 1000:  # the normal approximation is exact to a rank here
        low = math.floor(n / 2 - 0.98 * math.sqrt(n)) - 1
        return low, n - 1 - low
    probability = 0.5**n  # that exactly k of n samples lie below the median
    total = 0.0
    low = -1
    for k in range(n // 2):
        total += probability
        if 2 * total > 0.05:
            break
        low = k
        probability *= (n - k) / (k + 1)
    return low, n - 1 - low


def relative_half_width(samples: Floats) -> float:
    """Return half the 95 % interval of the median over the median; infinite where it is not estimable.

    samples: in the order in which they were taken. Neighbours that are alike count as fewer (`effective_samples`).
    """
    if median_ranks(samples.size) is None:
        return math.inf
    effective = effective_samples(samples)
    ordered = np.sort(samples)
    low, stretch = 0, 1.0
    if (ranks := median_ranks(int(effective))) is not None:
        low = ranks[0] * (ordered.size - 1) // (int(effective) - 1)  # as far from the end as it is of so many
    else:  # not even the range holds the median with 95 %
        stretch = math.sqrt(_FEWEST_FOR_MEDIAN / effective)
    # Not np.median: its first call imports numpy.ma, 10 ms that the ranks would spend between two batches.
    median = float(ordered[(ordered.size - 1) // 2] + ordered[ordered.size // 2]) / 2
    width = float(ordered[ordered.size - 1 - low] - ordered[low]) / 2 * stretch
    return width / median if median > 0 else math.inf


def effective_samples(samples: Floats) -> float:
    """Return how many independent samples say as much as these, of which neighbours may be alike.

    n (1 - r) / (1 + r), with r the autocorrelation of the samples' ranks with the sample before, less the bias that it
    has in few samples. Where neighbours are unlike, as many as there are. Where samples are of two levels, r is that of
    the levels if it is more: within a level ranks are chance, which hides that a level lasts.
    """
    n = samples.size
    if n < 3:
        return float(n)
    ordered = np.sort(samples)
    # Ranks, as a single slow sample would hide what the others do; equal samples have equal ones.
    ranks = (np.searchsorted(ordered, samples, "left") + np.searchsorted(ordered, samples, "right") - n).astype(float)
    if not (spread := float(ranks @ ranks)):
        return float(n)
    r = _autocorrelation(ranks, spread)
    if (levels := _levels(samples, ordered)) is not None:
        r = max(r, _autocorrelation(levels, float(levels @ levels)))
    return n * (1 - r) / (1 + r)


def _autocorrelation(values: Floats, square: float) -> float:
    """Return that of centred values with the one before, from 0 on, less its bias; `square` is their square."""
    r = float(values[:-1] @ values[1:]) / square
    return min(max(r + (1 + 4 * r) / values.size, 0.0), 1 - 1 / values.size)


def _levels(samples: Floats, ordered: Floats) -> Floats | None:
    """Return which of two levels each sample is of, centred; None where they are not of two.

    There are two where a gap is three times as wide as what lies in both parts around their medians together (half of
    each), and neither part is a few spikes.
    """
    n = samples.size
    fewest = max(_FEWEST_OF_LEVEL, math.ceil(_SHARE_OF_LEVEL * n))
    if n < 2 * fewest:
        return None
    gaps = np.diff(ordered[fewest - 1 : n - fewest + 1])
    above = fewest + int(np.argmax(gaps))
    inside = sum(float(part[3 * part.size // 4] - part[part.size // 4]) for part in (ordered[:above], ordered[above:]))
    if gaps[above - fewest] < _GAP_OF_LEVELS * inside:
        return None
    upper: Floats = (samples >= ordered[above]) - (n - above) / n
    return upper


def median_of_medians(per_launch: Sequence[Floats]) -> float:
    """Return the median over launches of the median over samples: a launch counts once, whatever samples it took."""
    return float(np.median(_medians(per_launch)))


def _medians(per_launch: Sequence[Floats]) -> Floats:
    return np.array([np.median(samples) for samples in per_launch])


def interval(per_launch: Sequence[Floats], *, seed: int = 0) -> Interval | None:
    """Return the 95 % interval of `median_of_medians`.

    A percentile bootstrap of the statistic itself. From 6 launches up, launches are resampled, as samples of one
    launch are correlated. Below that samples within each launch are, and launch-to-launch spread is not in the result;
    None, "not estimable", if a launch has fewer than 6 samples. low <= `median_of_medians` <= high always.
    """
    medians = _medians(per_launch)
    centre = float(np.median(medians))
    if len(per_launch) >= LAUNCHES_FOR_INTERVAL:
        low, high = _interval_of_median(medians, *_resampled_medians([medians], seed))
        return Interval(low, high, "launches").around(centre)
    if any(median_ranks(samples.size) is None for samples in per_launch):
        return None
    by_launch = _resampled_medians(per_launch, seed)
    if len(per_launch) == 1:
        low, high = _interval_of_median(per_launch[0], by_launch[0])
    else:
        low, high = (float(q) for q in np.quantile(np.median(by_launch, axis=0), _TAILS))
    return Interval(low, high, "samples").around(centre)


def median_ratio(baseline: Sequence[Floats], other: Sequence[Floats]) -> float | None:
    """Return the median over launches of the ratio of the launch's medians, None if there is none.

    Above 1, `other` is faster.

    Launch by launch, so that what slows a whole launch cancels. Of an even number of launches the middle is the
    geometric one: seen from the other arm, the ratio is then exactly its inverse.
    """
    logs = _log_ratios(baseline, other)
    return math.exp(float(np.median(logs))) if logs.size and np.isfinite(logs).all() else None


def ratio(baseline: Sequence[Floats], other: Sequence[Floats], *, seed: int = 0) -> Ratio | None:
    """Return `median_ratio` with its 95 % interval.

    The samples of launch i of both arms are of one process group. As in `interval`, from 6 launches up launches are
    resampled, in pairs; below that samples within each launch of each arm. None, "not estimable", without launches,
    if one then has fewer than 6 samples, or where times are 0. low <= ratio <= high always.
    """
    logs = _log_ratios(baseline, other)
    if not logs.size or not np.isfinite(logs).all():
        return None
    if logs.size >= LAUNCHES_FOR_INTERVAL:
        of = "launches"
        low, high = _interval_of_median(logs, *_resampled_medians([logs], seed))
    else:
        of = "samples"
        if any(median_ranks(samples.size) is None or samples.min() <= 0 for samples in (*baseline, *other)):
            return None
        # No guard for few samples: a ratio of two resampled medians takes many values; alone it covers 95 %.
        drawn = _resampled_medians([samples for pair in zip(baseline, other, strict=True) for samples in pair], seed)
        by_launch = [np.log(one / two) for one, two in zip(drawn[::2], drawn[1::2], strict=True)]
        low, high = (float(q) for q in np.quantile(np.median(by_launch, axis=0), _TAILS))
    centre = float(np.median(logs))
    return _ratio_of_logs(centre, Interval(low, high, of))


@functools.lru_cache(maxsize=64)
def _signed_rank_depth(n: int, level: float) -> int:
    """Return how many Walsh averages lie outside the interval on either side, plus one; 0 where there is none.

    From the exact distribution of Wilcoxon's signed-rank statistic: subsets of 1 .. n by their sum.
    """
    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1.0
    for rank in range(1, n + 1):
        counts[rank:] = counts[rank:] + counts[:-rank]
    below = np.cumsum(counts) / 2.0**n  # P(T <= t)
    return int(np.searchsorted(below, level / 2, side="right"))


def paired_ratio(logs: Floats, level: float = LEVEL) -> Ratio:
    """Return the ratio from paired observations of its logarithm, with the interval that misses it in `level` of cases.

    The Hodges-Lehmann estimate, the median of the averages of all pairs of observations, and the interval that belongs
    to Wilcoxon's signed-rank test (Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods", 3.2 and 3.3):
    about as robust against launches that went wrong as the median, and narrower for ten pairs. At 95 % there is no
    interval below 6 observations. `logs` has at least one.
    """
    rows, columns = np.triu_indices(logs.size)
    walsh = np.sort((logs[rows] + logs[columns]) / 2)
    depth = _signed_rank_depth(logs.size, level)
    value = math.exp(float(np.median(walsh)))
    if depth < 1:
        return Ratio(value, None)
    return Ratio(value, Interval(math.exp(float(walsh[depth - 1])), math.exp(float(walsh[-depth])), "launches"))


def unpaired_ratio(before: Sequence[Floats], after: Sequence[Floats], *, seed: int = 0) -> Ratio | None:
    """Return the ratio of the `median_of_medians` of two runs, with its 95 % interval.

    Above 1, `after` is faster. Launches of the two have nothing to do with each other, so each run's are resampled on
    their own: the bootstrap then covers 95.7 to 96.6 % at 6 to 15 launches (simulated), and needs no guard. With fewer
    than 6 in one of them samples are, as in `interval`; None, "not estimable", if a launch has fewer than 6, or where
    times are 0. low <= ratio <= high always.
    """
    if not before or not after or any(not samples.size or samples.min() <= 0 for samples in (*before, *after)):
        return None
    medians = _medians(before), _medians(after)
    if min(len(before), len(after)) >= LAUNCHES_FOR_INTERVAL:
        of = "launches"
        one, two = _resampled_medians(medians, seed)
    else:
        of = "samples"
        if any(median_ranks(samples.size) is None for samples in (*before, *after)):
            return None
        drawn = _resampled_medians([*before, *after], seed)
        one, two = (np.median(of_run, axis=0) for of_run in (drawn[: len(before)], drawn[len(before) :]))
    centre = math.log(float(np.median(medians[0])) / float(np.median(medians[1])))
    low, high = (float(q) for q in np.quantile(np.log(one / two), _TAILS))
    return _ratio_of_logs(centre, Interval(low, high, of))


def _ratio_of_logs(centre: float, logs: Interval) -> Ratio:
    low, high, of = logs.around(centre)
    return Ratio(math.exp(centre), Interval(math.exp(low), math.exp(high), of))


def _log_ratios(baseline: Sequence[Floats], other: Sequence[Floats]) -> Floats:
    """Return the logarithm of each launch's ratio, not finite where a median is 0."""
    pairs = [(float(np.median(one)), float(np.median(two))) for one, two in zip(baseline, other, strict=True)]
    return np.array([math.log(one / two) if one > 0 and two > 0 else math.nan for one, two in pairs])


class Verdict(StrEnum):
    """What is said of a ratio of times. Tables, files and plots show these words, or derive theirs from them."""

    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference"  # the interval holds 1, or it could be chance among so many verdicts
    NOT_ESTIMABLE = "not estimable"  # there is no interval of launches
    CONFIRMED = "confirmed"  # faster by a gain that counts, in enough pairs, tested: only tuning says so


def verdict(low: float | None, high: float | None, p: float | None = 0.0) -> Verdict:
    """Return what the interval of a ratio says, without a claim.

    `p`: of no difference, adjusted for all verdicts that are given together; None where there are too few launches. A
    ratio that is alone, with an interval of launches, needs none.
    """
    if low is None or high is None or p is None:
        return Verdict.NOT_ESTIMABLE
    if p > LEVEL:
        return Verdict.NO_DIFFERENCE
    return Verdict.FASTER if low > 1 else Verdict.SLOWER if high < 1 else Verdict.NO_DIFFERENCE


def too_noisy(low: float, high: float) -> bool:
    """Return whether an interval of ratios is so wide that its ends say nothing."""
    return high > TOO_WIDE * low


def missing_launches(launches: int) -> str:
    """Return what a verdict would take, in words; "" where there are launches enough."""
    if launches >= LAUNCHES_FOR_INTERVAL:
        return ""
    counted = f"{launches} launch{'es' if launches != 1 else ''}"
    return f"{counted}, {LAUNCHES_FOR_INTERVAL} are needed for a verdict: launches={LAUNCHES_FOR_INTERVAL}"


def _resampled_medians(arrays: Sequence[Floats], seed: int) -> list[Floats]:
    """Return for each array the medians of `_RESAMPLES` samples drawn from it with replacement."""
    drawn = _draws(seed, tuple(values.size for values in arrays))
    return [_medians_of_draws(values, draws) for values, draws in zip(arrays, drawn, strict=True)]


@functools.lru_cache(maxsize=8)  # of one comparison nearly all cases have the same; 2 kB for each value
def _draws(seed: int, sizes: tuple[int, ...]) -> list[npt.NDArray[Any]]:
    """Return what is drawn from arrays of these sizes, one after the other, whatever is in them.

    Of up to `_LARGE` values how often each one is drawn, values x `_RESAMPLES`; of more the place of the median among
    the sorted values.
    """
    rng = np.random.default_rng(seed)
    drawn: list[npt.NDArray[Any]] = []
    for n in sizes:
        if n > _LARGE:
            # The median of n draws is the value at the median of n uniform places, which is a beta variable.
            drawn.append((rng.beta((n + 1) / 2, (n + 1) / 2, size=_RESAMPLES) * n).astype(int))
        else:
            cells = rng.integers(0, n, size=(_RESAMPLES, n)) * _RESAMPLES + np.arange(_RESAMPLES)[:, None]
            drawn.append(
                np.bincount(cells.ravel(), minlength=n * _RESAMPLES).reshape(n, -1).astype(np.min_scalar_type(n))
            )
    return drawn


def _medians_of_draws(values: Floats, draws: npt.NDArray[Any]) -> Floats:
    """Return the median of each resample, by counting: to sort 2000 of them takes 20 times as long."""
    n, order = values.size, np.argsort(values)
    ordered = values[order]
    if draws.ndim == 1:
        middle: Floats = ordered[draws]
        return middle
    reached = np.cumsum(draws[order], axis=0, dtype=draws.dtype)  # drawn of a value and of those below, n at most
    lower: Floats = ordered[np.count_nonzero(reached <= (n - 1) // 2, axis=0)]
    if n % 2:
        return lower
    upper: Floats = ordered[np.count_nonzero(reached <= n // 2, axis=0)]
    return (lower + upper) / 2


def _interval_of_median(values: Floats, replicates: Floats) -> tuple[float, float]:
    """Return the bootstrap's interval, and for few values at least that of order statistics.

    The bootstrap of a median takes few different values: alone, it covers 87 % at n = 7 (simulated).
    """
    low, high = (float(q) for q in np.quantile(replicates, _TAILS))
    ranks = median_ranks(values.size)
    if ranks is not None and values.size <= _FEW:
        ordered = np.sort(values)
        low, high = min(low, float(ordered[ranks[0]])), max(high, float(ordered[ranks[1]]))
    return low, high


def p95(samples: Floats) -> float | None:
    """Return the nearest-rank 95th percentile, None where it would be the maximum."""
    if samples.size < SAMPLES_FOR_P95:
        return None
    return float(np.sort(samples)[math.ceil(0.95 * samples.size) - 1])
