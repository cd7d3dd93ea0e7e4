"""Claims: is the best of the search really better than the default? Statistics only.

Two arms are compared launch by launch, as samples of one launch are correlated: the logarithm of the ratio of their
medians is one observation, where one process group has measured both. A claim needs ten of them, Wilcoxon's one-sided
signed-rank test at 5 % after Holm's correction over all claims, and the 95 % interval that belongs to that test with
its lower end above the least gain that is worth a change. Where several looks are taken (`looks.py`), each has a share
of these 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from commbench import stats
from commbench.stats import LAUNCHES_FOR_INTERVAL, LEVEL, Verdict

Key = TypeVar("Key")
_Z90, _Z95 = 1.28, 1.96  # quantiles of the normal distribution: 90 % below, 95 % between


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The claim that one arm is faster than another."""

    pairs: int
    ratio: float  # time of the first / time of the second: above 1 the second is faster
    low: float | None
    high: float | None
    p: float | None  # one-sided, of no gain; None: too few pairs

    def judge(self, minimum: float, p: float | None) -> str:
        """Return `Verdict.CONFIRMED`, or in words why not; `p` is adjusted for all claims that are made."""
        if self.pairs < stats.PAIRS_FOR_CLAIM:
            return f"not confirmed: {self.pairs} pairs of launches, a claim takes {stats.PAIRS_FOR_CLAIM}"
        if self.low is None or self.low <= 1 + minimum:
            least = "not estimable" if self.low is None else f"{self.low:.3f}"
            return f"not confirmed: the interval's lower end is {least}, above {1 + minimum:.3f} is asked for"
        if p is None or p > LEVEL:
            return f"not confirmed: p is {p}, at most {LEVEL} is asked for"
        return Verdict.CONFIRMED


def compare(first: Mapping[Key, float], second: Mapping[Key, float]) -> Claim:
    """Return the claim that `second` is faster than `first`, both median times of launches, microseconds."""
    return claim(observe(first, second))


def observe(first: Mapping[Key, float], second: Mapping[Key, float]) -> stats.Floats:
    """Return the logarithms of first / second where both were measured.

    The keys say what was measured side by side: process groups, or rounds of them. What only one of them has does not
    count.
    """
    shared = [launch for launch in first if launch in second and first[launch] > 0 and second[launch] > 0]
    return np.array([math.log(first[launch] / second[launch]) for launch in shared])


def claim(logs: stats.Floats, share: float = 1.0) -> Claim:
    """Return the claim that `logs` are above 0, at a look that may spend `share` of the error.

    p is divided by it, and the interval that much more certain: over all looks both are as for one.
    """
    if not logs.size:
        return Claim(pairs=0, ratio=math.nan, low=None, high=None, p=None)
    ratio, p = stats.paired_ratio(logs, level=LEVEL * share), signed_rank(logs)
    adjusted = None if p is None else min(1.0, p / share)
    return Claim(pairs=logs.size, ratio=ratio.value, low=ratio.low, high=ratio.high, p=adjusted)


def hopeless(logs: stats.Floats, pairs: int, minimum: float) -> bool:
    """Return whether a claim is not worth more launches: whether with `pairs` of them it would hardly hold.

    Hardly: in one of ten tries, with a gain as large as the upper end of an 80 % interval of what was seen. To give up
    early makes no claim hold.
    """
    seen = logs.size
    if seen < LAUNCHES_FOR_INTERVAL:
        return True
    known = stats.paired_ratio(logs)
    if known.low is None or known.high is None:
        return True
    spread = math.log(known.high / known.low) / (2 * _Z95) * math.sqrt(seen)  # of one observation
    hoped = math.log(known.value) + _Z90 * spread / math.sqrt(seen)
    more = max(pairs - seen, 0)
    asked = math.log1p(minimum) + _Z95 * spread / math.sqrt(seen + more)
    mean = (seen * math.log(known.value) + more * hoped) / (seen + more)
    return mean + _Z90 * spread * math.sqrt(more) / (seen + more) < asked


def signed_rank(logs: stats.Floats) -> float | None:
    """Return Wilcoxon's one-sided p that `logs` are not above 0; None of fewer than 5."""
    if logs.size < 5:
        return None
    if not logs.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(logs, alternative="greater").pvalue)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return Holm-adjusted p-values, in the same order; None stays, and counts as a claim that failed.

    S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(values)), key=lambda i: 1.0 if values[i] is None else float(values[i] or 0.0))
    adjusted: list[float | None] = [None] * len(values)
    worst = 0.0
    for place, index in enumerate(order):
        p = values[index]
        if p is not None:
            worst = max(worst, min(1.0, p * (len(values) - place)))
            adjusted[index] = worst
    return adjusted
