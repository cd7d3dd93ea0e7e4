"""Skew: ranks leave the barrier before a call one after the other, and whoever is early waits for the others.

That is a part of what a call takes (the maximum over ranks of their own durations), paid once and not at each step. It
is measured with every case, so it need not be guessed from the times, which calls of one step do not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from commbench.cost_model.observe import Observation

# The rest is hidden behind what early ranks do meanwhile. Half fitted best where processors are scarce, of 0, a half
# and 1; where they are not, there is hardly any skew (docs/project/log.md, 2026-11-22).
_SEEN = 0.5


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
        """Return what a call takes of it: in between straight lines, and beyond in proportion to the ranks."""
        if not self.by_ranks:
            return 0.0
        known = np.array(list(self.by_ranks))
        values = np.array(list(self.by_ranks.values()))
        nearest = float(np.clip(ranks, known[0], known[-1]))
        skew_us = float(np.interp(nearest, known, values)) * ranks / nearest
        return _SEEN * skew_us
