"""Medians and their 95 % intervals. Times in, times out: bandwidth is computed last and never averaged.

After Hoefler and Belli, "Scientific Benchmarking of Parallel Computing Systems", SC'15.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LAUNCHES_FOR_INTERVAL = 6  # the range of 6 values covers their median at 96.9 %; below 6 no interval of launches exists
SAMPLES_FOR_P95 = 20  # below, the 95th percentile is just the maximum
_RESAMPLES = 2000


@functools.lru_cache(maxsize=4096)
def median_ranks(n: int) -> tuple[int, int] | None:
    """0-based order statistics that enclose the median with at least 95 %, or None below n = 6 (exact binomial)."""
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
    """Half the 95 % interval of the median, relative to the median; infinite where it cannot be told."""
    ranks = median_ranks(samples.size)
    if ranks is None:
        return math.inf
    ordered = np.sort(samples)
    # Not np.median: its first call imports numpy.ma, 10 ms that the ranks would spend between two batches.
    median = float(ordered[(ordered.size - 1) // 2] + ordered[ordered.size // 2]) / 2
    return float(ordered[ranks[1]] - ordered[ranks[0]]) / 2 / median if median > 0 else math.inf


def median_of_medians(per_launch: Sequence[Floats]) -> float:
    """Median over launches of the median over samples: a launch counts once, however many samples it took."""
    return float(np.median([np.median(samples) for samples in per_launch]))


def interval(per_launch: Sequence[Floats], *, seed: int = 0) -> tuple[float, float, str]:
    """95 % interval (low, high) of `median_of_medians`, and what was resampled: "launches" or "samples".

    A percentile bootstrap of the statistic itself. From 6 launches up, launches are resampled, as samples of one
    launch are correlated. Below that samples within each launch are, and launch-to-launch spread is not in the result.
    low <= `median_of_medians` <= high always.
    """
    rng = np.random.default_rng(seed)
    centre = median_of_medians(per_launch)
    of = "launches" if len(per_launch) >= LAUNCHES_FOR_INTERVAL else "samples"
    if of == "launches":
        medians = np.array([np.median(samples) for samples in per_launch])
        picks = rng.integers(0, medians.size, size=(_RESAMPLES, medians.size))
        replicates = np.median(medians[picks], axis=1)
    else:
        by_launch = [
            np.median(samples[rng.integers(0, samples.size, size=(_RESAMPLES, samples.size))], axis=1)
            for samples in per_launch
        ]
        replicates = np.median(by_launch, axis=0)
    low, high = np.quantile(replicates, [0.025, 0.975])
    return min(float(low), centre), max(float(high), centre), of


def p95(samples: Floats) -> float | None:
    """Nearest-rank 95th percentile, or None where it would be the maximum."""
    if samples.size < SAMPLES_FOR_P95:
        return None
    return float(np.sort(samples)[math.ceil(0.95 * samples.size) - 1])
