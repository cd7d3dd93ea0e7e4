"""Tuning: search many candidates, confirm the best in fresh launches, and keep the default where nothing is proven.

The best of many noisy measurements looks better than it is, and a fast algorithm may deliver wrong data. So every
candidate is checked at every size before it is timed; what the search finds is measured again, beside the default, in
launches that the search has not seen; and the default beside itself goes through the same, to show what no gain looks
like.
docs/guide/tuning.md says how to use it, docs/reference/metrics.md how the numbers are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from commbench.records import Case, Status


class ProcessGroup(NamedTuple):
    """Which launch measured something. Two cases were measured side by side where this is the same of both.

    After a crash the rest of a launch is measured by other processes: `attempt` differs, `round` does not.
    """

    round: int  # of the stage: starts of ranks that are compared have a launch each in a round
    attempt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseTimes:
    """The times of one case in a stage, or why there are none."""

    status: Status
    reason: str = ""
    time_us: Mapping[ProcessGroup, float] = field(default_factory=dict)  # median of the samples of each launch


class Measurer(Protocol):
    """Measures cases in fresh launches, interleaved; a run folder each time, or in tests whatever is planted."""

    def measure(self, stage: str, cases: Sequence[Case]) -> dict[str, CaseTimes]:
        """Measure `cases` and return their times by case id. `stage` names the run folder."""
        ...

    @property
    def run(self) -> str:
        """Return the id of the last run folder."""
        ...

    @property
    def spent_s(self) -> float:
        """Return seconds since tuning began."""
        ...

    @property
    def start_s(self) -> float:
        """Return seconds that a launch took to start, in the stages so far."""
        ...

    @property
    def overhead_s(self) -> float:
        """Return seconds that a measurement took beyond its cap: buffers, data, checks."""
        ...
