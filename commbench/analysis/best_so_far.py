"""What leads in a sweep that is not at its end, for the line of progress: no claim is made of it."""

from __future__ import annotations

import statistics
from collections.abc import Hashable
from dataclasses import dataclass

from commbench import collectives
from commbench.analysis.ratios import baseline_rank
from commbench.records import Case, Measurement, Status
from commbench.stats import too_noisy
from commbench.units import format_size, gbps

_LEAST = 1.03  # a smaller lead is not worth a word


@dataclass(frozen=True, slots=True)
class _Lead:
    """The fastest of some cases that differ in algorithm only, against their baseline."""

    ratio: float
    label: str
    baseline: str
    size_bytes: int


class BestSoFar:
    """Knows the times of a sweep's launches, and says which algorithm is furthest ahead of the baseline, and where."""

    def __init__(self) -> None:
        self._times: dict[Hashable, dict[str, tuple[Case, dict[str, float]]]] = {}  # alike -> case -> process group
        self._leads: dict[Hashable, _Lead] = {}
        self._noisy: set[Hashable] = set()  # of what is alike, that whose ratios differ too much
        self._fastest = (0.0, 0)  # GB/s, bytes

    def add(self, case: Case, measurement: Measurement) -> None:
        """Take over a measurement; one that failed says nothing."""
        if measurement.status is not Status.OK or not measurement.time_us:
            return
        key = _alike(case)
        alike = self._times.setdefault(key, {})
        alike.setdefault(case.case_id, (case, {}))[1][measurement.attempt] = measurement.time_us
        factor = collectives.get(case.collective).busbw_factor(case.spec) or 1.0
        self._fastest = max(self._fastest, (factor * gbps(case.size_bytes, measurement.time_us), case.size_bytes))
        baseline, ours = min(alike.values(), key=lambda one: baseline_rank(one[0]))
        known = [
            (other.label, shared)
            for other, theirs in alike.values()
            if other is not baseline and (shared := [ours[group] / theirs[group] for group in ours if group in theirs])
        ]
        self._leads.pop(key, None)
        self._noisy.discard(key)
        leads = [
            _Lead(statistics.median(shared), label, baseline.label, case.size_bytes)
            for label, shared in known
            if not too_noisy(min(shared), max(shared))
        ]
        if leads:
            self._leads[key] = max(leads, key=lambda lead: lead.ratio)
        elif known:
            self._noisy.add(key)

    def __str__(self) -> str:
        """Return `so far bruck 1.52x direct at 1 KiB, ahead at 3 of 8 sizes`; "" where nothing is known."""
        if self._noisy and not self._leads:
            return "so far too noisy to tell"
        if not self._leads:
            busbw, size_bytes = self._fastest
            return f"so far up to {busbw:.3g} GB/s, at {format_size(size_bytes)}" if busbw else ""
        best = max(self._leads.values(), key=lambda lead: lead.ratio)
        if best.ratio < _LEAST:
            return f"so far nothing is {100 * (_LEAST - 1):.0f} % faster than {best.baseline}"
        ahead = sum(lead.ratio >= _LEAST for lead in self._leads.values())
        more = f", ahead in {ahead} of {len(self._leads)} comparisons" if len(self._leads) > 1 else ""
        return f"so far {best.label} {best.ratio:.2f}x {best.baseline} at {format_size(best.size_bytes)}{more}"


def _alike(case: Case) -> Hashable:
    """Return what cases share that differ in algorithm and parameters only."""
    return (
        case.setup.key, case.collective, str(case.arguments), case.in_place, case.groups, case.overlap, case.mode,
        case.buffers, case.cache, case.dtype, case.size_bytes,
    )  # fmt: skip
