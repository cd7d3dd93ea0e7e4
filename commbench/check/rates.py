"""By how much a link's rate is lower: what bytes cost on it over what they cost elsewhere, less a message's own cost.

From two matrices of the same launches, of a small message and of a large one: the time of the large one less that of
the small one is the bytes' own. For a slow link that is the factor of its rate; the times themselves show less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from commbench.analysis.pair_matrices import Matrix
from commbench.analysis.stragglers import suspects
from commbench.analysis.stragglers.search import Straggler
from commbench.stats import LAUNCHES_FOR_INTERVAL, Floats, Interval, Ratio

_RESAMPLES, _TAILS = 400, (0.025, 0.975)
_LEAST_SHARE = 0.5  # of the large message's time that its bytes take, below which it says nothing of rates


def rate_factor(small: Matrix, large: Matrix, straggler: Straggler, others: Sequence[Straggler]) -> Ratio | None:
    """Return the factor with its interval of launches; None where it is not estimable."""
    launches = min(small.launches, large.launches)
    if launches < LAUNCHES_FOR_INTERVAL or small.layout != large.layout or not straggler.cells:
        return None
    own = np.array(sorted(straggler.cells))
    touched = np.zeros(large.layout.ranks**2, dtype=bool)
    n = large.layout.ranks
    for one in (straggler, *others):
        cells = np.array(sorted(one.cells), dtype=np.int64)
        touched[cells] = True
        touched[cells % n * n + cells // n] = True  # the other direction: acknowledgements wait there
    for one in others:
        own = own[~np.isin(own, sorted(one.cells))]
    of = suspects.classes(large.layout)
    large_us = large.time_us[:launches].reshape(launches, -1)
    bytes_us = large_us - small.time_us[:launches].reshape(launches, -1)
    groups = []
    for link in np.unique(of[own]):
        rest = np.flatnonzero(~touched & (of == link))
        mine, others_us = bytes_us[:, own[of[own] == link]], bytes_us[:, rest]
        if not rest.size or not np.isfinite(others_us).any():
            return None
        if not np.nanmedian(others_us) >= _LEAST_SHARE * np.nanmedian(large_us[:, rest]):
            return None
        groups.append((mine, others_us))
    if not groups:
        return None
    rng = np.random.default_rng(0)
    value = _factor(groups)
    drawn = np.array([_factor([_resampled(group, rng) for group in groups]) for _ in range(_RESAMPLES)])
    if not np.isfinite([value, *drawn]).all():
        return None
    low, high = (float(end) for end in np.quantile(drawn, _TAILS))
    return Ratio(value, Interval(low, high, "launches").around(value))


def _factor(groups: Sequence[tuple[Floats, Floats]]) -> float:
    """Return the median over launches of how much longer bytes take; groups: of each class of link, mine and others."""
    logs = [np.log(np.nanmedian(mine, axis=1) / np.nanmedian(others, axis=1)) for mine, others in groups]
    sizes = [mine.shape[1] for mine, _ in groups]
    return float(np.exp(np.median(np.average(logs, axis=0, weights=sizes))))


def _resampled(group: tuple[Floats, Floats], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw launches, and messages in them: two messages of one class of link are never quite alike either."""
    launches = rng.integers(len(group[0]), size=len(group[0]))
    mine, others = (part[launches][:, rng.integers(part.shape[1], size=part.shape[1])] for part in group)
    return mine, others
