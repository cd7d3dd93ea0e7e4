"""What a sweep says at its end."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from commbench.analysis import ratios
from commbench.analysis.summary import Samples
from commbench.measure.samples import take
from commbench.output.answer.preemption import preemption
from commbench.output.answer.sweep import answer
from commbench.output.table import table
from commbench.records import Case, Measurement, Row
from commbench.run_folder import RunFolder
from commbench.transports.host_clock import HostMarks
from tests.support.fake_runs import META, measured, planned, rows_of

WORDS = ("nodes=1", "ranks_per_node=2", "algorithm=direct,bruck", "launches=6", "sizes.min=1K", "sizes.max=32K",
         "sizes.factor=32")  # fmt: skip
TWO_CPUS = {**META, "machine": {"affinity": [0, 1]}}


def made(bruck: float, *, noise: float = 0.01, **counted: Any) -> tuple[list[Row], dict[str, ratios.Speedup]]:
    """`bruck` takes so many times as long at 1 KiB, and the same at 32 KiB."""

    def rule(case: Case) -> float:
        return 20.0 * (bruck if case.algorithm == "bruck" and case.size_bytes == 1024 else 1.0)

    cases = planned(*WORDS)
    found: list[Measurement] = [dataclasses.replace(m, **counted) for m in measured(cases, rule, noise=noise)]
    rows = rows_of(cases, found, Samples(RunFolder(Path("/nowhere"))))
    return rows, ratios.compare(cases, found, lambda measurement: np.empty(0))


def test_what_is_fastest_for_certain_is_named_with_its_interval() -> None:
    rows, compared = made(0.5, preempted=0, load_average=0.5)
    text = str(answer(rows, compared, TWO_CPUS))
    assert text.startswith("all_to_all over scripted, 1 node x 2 ranks: bruck is fastest at 1 KiB (")
    assert re.search(r"us\): (1\.9|2\.0)\dx as fast as direct \[1\.9\d-2\.\d\d\], nothing is proven at 32 KiB$", text)
    rows, compared = made(2.0, preempted=0, load_average=0.5)
    assert re.search(
        r"direct is fastest at 1 KiB \(.*\): (1\.9|2\.0)\dx as fast as bruck \[", str(answer(rows, compared, META))
    )


def test_long_times_are_milliseconds() -> None:
    rows, compared = made(0.5, preempted=0, load_average=0.5)
    slow = [dataclasses.replace(row, time_us=12345.6) for row in rows]
    assert " (12.3 ms): " in str(answer(slow, compared, TWO_CPUS))


def test_nothing_proven_has_its_reason_with_a_number() -> None:
    rows, compared = made(1.0, noise=0.25, preempted=3, load_average=4.13)
    said = "15 % of samples were preempted: other programs use these CPUs, load 4.1"
    nothing, reason = answer(rows, compared, TWO_CPUS).sentences
    assert re.search(r": nothing is proven fastest: bruck against direct is between 0\.\d\dx and \d\.\d\dx$", nothing)
    assert reason == said
    noisy = answer(*made(1.0, noise=2.0), TWO_CPUS).sentences[0]
    assert noisy.endswith("bruck against direct is too noisy to tell, with an interval wider than 10x")
    assert f"# warning: {said}" in table(rows, TWO_CPUS, compared)
    assert "2 ranks share 1 CPUs" in preemption(rows, {**META, "machine": {"usable_cpus": 1}})
    quiet, _ = made(1.0, preempted=3, load_average=1.9)
    assert preemption(quiet, TWO_CPUS).endswith("threads of the library or the system took their CPUs, load 1.9")
    rows, compared = made(1.0)
    assert preemption(rows, TWO_CPUS) == "", "old runs did not count"


def test_ranks_of_a_scripted_network_wait_for_no_cpu() -> None:
    rows, compared = made(1.0)
    one = {**META, "machine": {"usable_cpus": 1}}
    assert "ranks share" not in table(rows, one, compared)
    over = [dataclasses.replace(row, transport="gloo") for row in rows]
    assert "# warning: 2 ranks share 1 CPUs, so times include waiting for a CPU" in table(over, one, compared)


def test_switches_cost_nothing_where_links_decide() -> None:
    rows, _ = made(1.0, preempted=20, load_average=1.0, cpu_percent=40.0)
    emulated = [dataclasses.replace(row, fabric="emulated", ranks=4) for row in rows]
    assert preemption(emulated, TWO_CPUS) == ""
    busy = [dataclasses.replace(row, cpu_percent=99.0) for row in emulated]
    assert preemption(busy, TWO_CPUS) == "100 % of samples were preempted: 4 ranks share 2 CPUs, load 1.0"
    assert "other programs use these CPUs" in preemption(
        [*rows, *(dataclasses.replace(row, load_average=4.0) for row in busy)], TWO_CPUS
    )


def test_switches_between_mark_and_mark_are_counted_and_no_others() -> None:
    class Clock(HostMarks):
        drains, switches, inside = False, 0, 0

        def barrier(self) -> None:
            self.switches += 5

        def synchronize(self) -> None: ...

        def preemptions(self) -> int:
            return self.switches

        def call(self) -> None:
            self.inside += 1
            self.switches += self.inside == 2

    clock = Clock()
    assert take(clock, [clock.call], 0, 4, 1).columns[3] == [0, 1, 0, 0]
    assert HostMarks().preemptions() >= 0


def test_a_part_of_the_calls_compared_is_said() -> None:
    rows, compared = made(1.0, checked_calls=20)
    assert {row.checked_calls for row in rows} == {120} and "compared, drawn at random" not in table(
        rows, TWO_CPUS, compared
    )
    rows, compared = made(1.0, checked_calls=9)
    assert "in 4 of 4 cases 45 % of the timed calls were compared, drawn at random" in table(rows, TWO_CPUS, compared)
    rows, compared = made(1.0)
    assert {row.checked_calls for row in rows} == {None}, "old runs did not count"
    assert "compared, drawn at random" not in table(rows, TWO_CPUS, compared)
