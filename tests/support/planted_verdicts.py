"""Tables and comparisons of 24 cases whose truth is known: times by a rule with noise, judged by the package itself."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from commbench.analysis import compare, ratios
from commbench.analysis.compare import CaseComparison, ComparedRun, MeasuredTimes
from commbench.analysis.ratios import Speedup
from commbench.records import Case, Measurement
from commbench.stats import Floats, Verdict
from tests.support.fake_runs import measured, planned

VERDICTS = (Verdict.FASTER, Verdict.SLOWER)
DRIFT = 0.1  # what launches differ by as a whole


def table(seed: int, *, launches: int, noise: float, gain: float = 0.0) -> tuple[dict[str, Speedup], Speedup]:
    """Return the ratios of 24 cases, 6 sizes x 4 ways of which the first is the baseline, and the one with the gain."""
    cases, made = _made(launches)
    place = {case.case_id: index for index, case in enumerate(cases)}
    better = next(case for case in cases if case.label == "bruck" and case.size_bytes == 16384)
    logs = noisy(seed, launches, len(cases), noise)
    logs[:, place[better.case_id]] -= np.log(1 + gain)
    times = np.exp(logs) * 100.0
    found = [dataclasses.replace(m, time_us=float(times[m.launch, place[m.case_id]])) for m in made]
    speedups = ratios.compare(cases, found, lambda measurement: np.empty(0))
    return speedups, speedups[better.case_id]


@functools.cache
def _made(launches: int) -> tuple[list[Case], list[Measurement]]:
    words = ("nodes=1", "ranks_per_node=2", "sizes.min=1K", "sizes.max=1M", "sizes.factor=4", f"launches={launches}")
    cases = planned(*words, "algorithm=direct,bruck,pairwise", "window=1,2")
    assert len(cases) == 24
    return cases, measured(cases, lambda case: 100.0)


def noisy(seed: int, launches: int, cases: int, noise: float) -> Floats:
    """Return logarithms of times, launches x cases: every launch differs as a whole, and every case in it."""
    rng = np.random.default_rng(seed)
    logs: Floats = rng.normal(0, DRIFT, (launches, 1)) + rng.normal(0, noise, (launches, cases))
    return logs


def comparison(seed: int, *, launches: int, noise: float, loss: float = 0.0) -> list[CaseComparison]:
    """Return what is said of 24 cases of two runs, of which the first one loses in the second run."""

    def run(name: str, seed: int, loss: float) -> ComparedRun:
        logs = noisy(seed, launches, 24, noise)
        logs[:, 0] += np.log(1 + loss)
        points = {
            str(case): MeasuredTimes(
                label=f"case {case}", set_up="", size_bytes=case, time_us=float(np.median(times)),
                launches=tuple(np.array([time]) for time in times),
                groups=tuple(map(str, range(launches))),
            )
            for case, times in enumerate(np.exp(logs.T) * 100.0)
        }  # fmt: skip
        return ComparedRun(path=Path(name), machine=None, points=points)

    return compare.compare(run("a", 2 * seed, 0.0), run("b", 2 * seed + 1, loss))
