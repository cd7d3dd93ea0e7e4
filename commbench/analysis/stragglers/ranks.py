"""Ranks that stand out in any sweep: their own time of a call against that of the other ranks, launch by launch.

Only collectives count in which every rank waits for every other. Who is slow to send delays all of them alike, so that
nobody stands out; whose own time is longer is slow to receive or to finish. A rank that does not stand out may be slow
all the same: the matrix of pairs shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from commbench import collectives, stats
from commbench.analysis.pair_matrices import COLLECTIVE, LaunchSamples
from commbench.analysis.stragglers.search import CHANCE, Straggler
from commbench.records import Setup
from commbench.stats import Floats

# Of the others some are waited for by some only, or do something else.
_NOT_ALIKE = (COLLECTIVE, "broadcast", "sendrecv")
FEWEST_RANKS = 4  # of two, or three, nobody can say who is odd
_TAIL = 5
_LEAST_SPREAD = 0.01
_MAD, _MEDIAN = 1.4826, 1.2533


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTimes:
    """One set-up: how far each rank is from the median rank. `excess` is launches x ranks, logarithms."""

    setup: Setup
    excess: Floats
    slowest: Floats  # share of the samples in which each rank was the slowest
    cases: int
    fabric: str = ""  # what is between the nodes, as in rows


def gather(items: Iterable[LaunchSamples]) -> list[RankTimes]:
    """Return the ranks' times of each set-up that has cases in which all ranks do the same."""
    logs: dict[str, dict[tuple[str, ...], list[Floats]]] = {}
    wins: dict[str, list[Floats]] = {}
    setups: dict[str, Setup] = {}
    fabrics: dict[str, str] = {}
    seen: dict[str, set[str]] = {}
    for item in items:
        case, times = item.case, item.time_us
        if case.collective in _NOT_ALIKE or times.shape[1] < FEWEST_RANKS or times.min() <= 0:
            continue
        if case.groups != "world" or collectives.get(case.collective).mean_bytes(case.spec) is not None:
            continue
        key = case.setup.key
        setups[key], fabrics[key] = case.setup, item.fabric
        seen.setdefault(key, set()).add(case.case_id)
        own = np.log(times)
        own = np.median(own - np.median(own, axis=1, keepdims=True), axis=0)
        logs.setdefault(key, {}).setdefault(item.launch, []).append(own)
        first = times == times.max(axis=1, keepdims=True)
        wins.setdefault(key, []).append((first / first.sum(axis=1, keepdims=True)).mean(axis=0))
    return [
        RankTimes(
            setup=setups[key],
            excess=np.array([np.median(launches[name], axis=0) for name in sorted(launches)]),
            slowest=np.mean(wins[key], axis=0),
            cases=len(seen[key]),
            fabric=fabrics[key],
        )
        for key, launches in logs.items()
    ]


def search(ranks: RankTimes, *, min_effect: float, tests: int) -> list[Straggler]:
    """Return the ranks whose own times are longer than those of the others by `min_effect` and more."""
    from scipy.stats import t

    centre = np.median(ranks.excess, axis=0)
    least = math.log(min_effect)
    stragglers = []
    for rank in np.flatnonzero(centre - np.median(centre) >= least).tolist():
        others = np.delete(np.arange(centre.size), rank)
        level = float(np.median(centre[others]))
        spread = max(_MAD * float(np.median(np.abs(centre[others] - level))), _LEAST_SPREAD)
        chance = min(1.0, tests * float(t.sf((centre[rank] - level) / (_MEDIAN * spread), min(_TAIL, others.size - 1))))
        per_launch = np.exp(ranks.excess[:, rank] - np.median(ranks.excess[:, others], axis=1))
        slow = int((np.log(per_launch) >= least / 2).sum())
        ratio, enough = float(np.median(per_launch)), len(per_launch) >= stats.LAUNCHES_FOR_INTERVAL
        known = stats.interval([np.array([value]) for value in per_launch]) if enough else None
        if chance > CHANCE or 2 * slow <= len(per_launch) or ratio < min_effect or known is None or known.low <= 1:
            continue
        low, high, interval_of = known.around(ratio)
        stragglers.append(
            Straggler(
                kind="rank",
                name=f"rank {rank}" + (f" (node {ranks.setup.layout.node(rank)})" if ranks.setup.nodes > 1 else ""),
                about={"ranks": [rank], "direction": "both", "slowest_share": round(float(ranks.slowest[rank]), 3)},
                ratio=ratio,
                low=low,
                high=high,
                interval_of=interval_of,
                other_way=None,
                launches=len(per_launch),
                launches_slow=slow,
                chance=chance,
                time_us={},
                usual_us={},
                messages=ranks.cases,
                usual_messages=len(others),
            )
        )
    return stragglers
