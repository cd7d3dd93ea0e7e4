"""`python -m tests.bench.tables`: the tables of docs/guide/emulated.md, from the runs in results/reference.

Ratios are medians over launches of the ratio inside a launch, with their 95 % intervals.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from commbench.analysis import ratios
from commbench.emulated import ROUTINGS
from commbench.records import Case, Measurement, Status
from commbench.run_folder import RunFolder
from commbench.units import format_size
from tests.conftest import REPOSITORY

REFERENCE = REPOSITORY / "results/reference"


def main() -> None:
    for lines in (overhead(), rates(), duplicates(), routings()):
        print("\n".join(lines), end="\n\n")


@dataclass(frozen=True, slots=True)
class Run:
    """The cases of a run that have numbers, and their measurements."""

    cases: Sequence[Case]
    measurements: Sequence[Measurement]

    @classmethod
    def of(cls, name: str) -> Run:
        folder = RunFolder(REFERENCE / name)
        measurements = [one for one in folder.measurements() if one.status is Status.OK and one.time_us is not None]
        measured = {one.case_id for one in measurements}
        return cls([item.case for item in folder.plan() if item.case.case_id in measured], measurements)

    def find(self, algorithm: str, size_bytes: int, nodes: int | None = None) -> list[Case]:
        found = [case for case in self.cases if case.algorithm == algorithm and case.size_bytes == size_bytes]
        return [case for case in found if nodes is None or case.setup.nodes == nodes]

    def fastest(self, algorithm: str, size_bytes: int, nodes: int | None = None) -> Case:
        """Return the case of an algorithm with the parameters that were fastest."""
        return min(self.find(algorithm, size_bytes, nodes), key=self.ms)

    def times_ms(self, case: Case) -> list[float]:
        return [one.time_us / 1e3 for one in self.measurements if one.case_id == case.case_id and one.time_us]

    def ms(self, case: Case) -> float:
        return statistics.median(self.times_ms(case))

    def gain(self, case: Case, baseline: Case) -> str:
        """Return how many times as fast as `baseline` a case is, with its interval."""
        known = ratios.compare([baseline, case], self.measurements, lambda measurement: np.empty(0))
        over = known[case.case_id]
        turned = over.speedup is None  # what `compare` takes as the baseline is the case
        if turned:
            over = known[baseline.case_id]
        middle, low, high = (value or math.nan for value in (over.speedup, over.speedup_low, over.speedup_high))
        if turned:
            middle, low, high = 1 / middle, 1 / high, 1 / low
        return f"{middle:.2f} [{low:.2f}, {high:.2f}]"

    def sizes(self) -> list[int]:
        return sorted({case.size_bytes for case in self.cases})


def _time(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def overhead() -> Iterator[str]:
    """Yield the lines of 2D over direct where a message costs much."""
    runs = [Run.of("2d_overhead-16cpu"), Run.of("2d_overhead-2cpu")]
    yield "| size | direct, 16 CPUs | speed-up, 16 CPUs | direct, 2 CPUs | speed-up, 2 CPUs |"
    yield "|---|---|---|---|---|"
    for size in runs[0].sizes():
        cells = []
        for run in runs:
            (direct,), (two_levels,) = run.find("direct", size), run.find("2d_intra_first", size)
            cells += [_time(run.ms(direct)), run.gain(two_levels, direct)]
        yield _line(format_size(size), *cells)


def rates() -> Iterator[str]:
    """Yield the lines of 2D over direct where links have a rate only."""
    run = Run.of("2d_rate-2cpu")
    yield "| layout | size | direct | 2d_intra_first over direct | 2d_pipelined, best K | over direct |"
    yield "|---|---|---|---|---|---|"
    for nodes in sorted({case.setup.nodes for case in run.cases}):
        for size in run.sizes():
            (direct,), (two_levels,) = run.find("direct", size, nodes), run.find("2d_intra_first", size, nodes)
            best = run.fastest("2d_pipelined", size, nodes)
            chunks = f"{best.params['chunks']} ({_time(run.ms(best))})"
            layout = f"{nodes}x{direct.setup.ranks_per_node}"
            times = (_time(run.ms(direct)), run.gain(two_levels, direct), chunks, run.gain(best, direct))
            yield _line(layout, format_size(size), *times)


def duplicates() -> Iterator[str]:
    """Yield the lines of dropping duplicates, and of overlapping what is left."""
    yield "| size | set-up | duplicated | drop_gather | dropping gains | best K | chunking gains |"
    yield "|---|---|---|---|---|---|---|"
    for name, setup in (
        ("tensor_parallel-2cpu", "memory, 2 CPUs"),
        ("tensor_parallel-inside-16cpu", "1600 Mbit/s inside, 16 CPUs"),
    ):
        run = Run.of(name)
        for size in run.sizes():
            (dropped,) = run.find("drop_gather", size)
            before, gain = "-", "-"
            for duplicated in run.find("duplicated", size):
                before, gain = _time(run.ms(duplicated)), run.gain(dropped, duplicated)
            best = run.fastest("drop_gather_pipelined", size)
            chunks = f"{best.params['chunks']} ({_time(run.ms(best))})"
            yield _line(format_size(size), setup, before, _time(run.ms(dropped)), gain, chunks, run.gain(best, dropped))


def routings() -> Iterator[str]:
    """Yield the lines of routing over two spines."""
    yield "| layout | size | static | ecmp | spray | ecmp over static | spray over static | spray over ecmp |"
    yield "|---|---|---|---|---|---|---|---|"
    for layout in ROUTED:
        run, by_routing = routed(layout)
        static, ecmp, spray = (by_routing[name] for name in ROUTINGS)
        cells = []
        for case in (static, ecmp, spray):
            low, high = min(run.times_ms(case)), max(run.times_ms(case))
            cells.append(f"{_time(run.ms(case))} ({low:.0f}-{high:.0f})")
        gains = [run.gain(ecmp, static), run.gain(spray, static), run.gain(spray, ecmp)]
        yield _line(layout, format_size(static.size_bytes), *cells, *gains)


ROUTED = ("2x2", "2x8", "4x4")


def routed(layout: str) -> tuple[Run, dict[str, Case]]:
    """Return the run of a layout over two spines, and its cases by routing."""
    run = Run.of(f"spines_{layout}-2cpu")
    return run, {case.setup.emulated.routing: case for case in run.cases if case.setup.emulated is not None}


if __name__ == "__main__":
    main()
