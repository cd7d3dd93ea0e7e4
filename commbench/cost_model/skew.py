"""Skew: ranks leave the barrier before a call one after the other, and whoever is early waits for the others.

That is a part of what a call takes (the maximum over ranks of their own durations), paid once and not at each step. It
is measured with every case, so it need not be guessed from the times, which calls of one step do not show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from commbench.cost_model.observe import Observation

# The rest is hidden behind what early ranks do meanwhile. Half fitted best where processors are scarce, of 0, a half
# and 1; where they are not, there is hardly any skew (docs/project/log.md, 2026-11-22).
_SEEN = 0.5
_FURTHEST = 2.0  # times the most ranks that were measured


@dataclass(frozen=True, slots=True)
class Skews:
    """Microseconds from the first to the last rank, by the number of ranks; empty where it was not measured."""

    by_ranks: Mapping[int, float] = field(default_factory=dict)

    @staticmethod
    def measured(observations: Sequence[Observation]) -> Skews:
        by_ranks: dict[int, list[float]] = {}
        for observation in observations:
            if observation.skew_us is not None:
                by_ranks.setdefault(observation.case.setup.layout.ranks, []).append(observation.skew_us)
        return Skews({ranks: float(np.median(values)) for ranks, values in sorted(by_ranks.items())})

    def of(self, ranks: int) -> float:
        """Return what a call takes of it: in between straight lines.

        Beyond the most ranks that were measured it grows as it did from count to count, in proportion to the ranks at
        most, up to `_FURTHEST` times as many; further away, and where one count is known, as a barrier has rounds: with
        the logarithm of the ranks.
        """
        if not self.by_ranks or ranks < 2:
            return 0.0
        known = np.array(list(self.by_ranks), dtype=float)
        values = np.array(list(self.by_ranks.values()))
        nearest = float(np.clip(ranks, known[0], known[-1]))
        skew_us = float(np.interp(nearest, known, values))
        if ranks > nearest and self._power > 0:
            reached = min(float(ranks), _FURTHEST * nearest)
            skew_us *= (reached / nearest) ** self._power
            nearest = reached
        if ranks != nearest and min(ranks, nearest) > 1:
            skew_us *= math.log2(ranks) / math.log2(nearest)
        return _SEEN * skew_us

    @property
    def _power(self) -> float:
        """Return with which power of the ranks skew was seen to grow, 0 to 1; 0 where one count is known."""
        there = {ranks: us for ranks, us in self.by_ranks.items() if us > 0 and ranks > 1}
        if len(there) < 2:
            return 0.0
        logs = np.log(np.array(list(there.items()), dtype=float))
        return float(np.clip(np.polyfit(logs[:, 0], logs[:, 1], 1)[0], 0.0, 1.0))
