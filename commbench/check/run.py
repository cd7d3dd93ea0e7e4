"""A check from its first launch to its verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from commbench import stats
from commbench.analysis import bounds, pair_matrices
from commbench.check import drift, node_facts
from commbench.check.judge import HealthReport, judge
from commbench.check.kept import Asked, write
from commbench.console import Console
from commbench.records import PlannedCase, Row
from commbench.run_folder import RunFolder
from commbench.sweep.runner import Sweep

_END_S = 2.0  # what the verdict takes


class CheckReporter:
    """Progress and notes; rows are in the run folder."""

    def __init__(self, console: Console, launches: int) -> None:
        """launches: that are planned, most of which the budget may leave out."""
        self._console = console
        self._launches = launches
        self.note = console.note
        self.row = console.row

    def progress(self, done: int, total: int, seconds_left: float | None, what: str, best: str = "") -> None:
        """Count up to the fewest launches, and on: how many there will be, the budget decides."""
        fewest = total * stats.LAUNCHES_FOR_INTERVAL // max(stats.LAUNCHES_FOR_INTERVAL, self._launches)
        self._console.progress(done, max(done, fewest), None, what.partition(",")[0])


def of_run(folder: RunFolder, planned: Sequence[PlannedCase], console: Console) -> Sweep:
    """Return the sweep of a check's folder, new or resumed or joined."""
    about = folder.read_json("run.json")
    launches = max(item.case.policy.launches for item in planned)
    return Sweep(
        folder, planned, seed=about["seed"], launchers=about["launchers"], timeout_s=about["timeout_s"],
        rates=bounds.declared(about.get("link_rate") or {}), reporter=CheckReporter(console, launches),
        before=node_facts.MODULE,
    )  # fmt: skip


def measure(folder: RunFolder, sweep: Sweep, asked: Asked, spent_s: float = 0.0) -> float:
    """Measure launch after launch, as many as fit; return the seconds spent. An interrupt passes on."""
    began, longest = time.monotonic(), 0.0
    last = began

    def spent() -> float:
        return spent_s + time.monotonic() - began

    def enough(launch: int) -> bool:
        nonlocal last, longest
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
        write(folder, asked, spent(), {})
        if asked.launches is not None or launch < stats.LAUNCHES_FOR_INTERVAL:
            return False
        return spent() + longest + _END_S > asked.budget_s

    sweep.run(enough)
    return spent()


def finish(folder: RunFolder, sweep: Sweep, asked: Asked, spent_s: float) -> HealthReport:
    """Write tables and the verdict of a check whose launches are over."""
    from commbench.output import parquet

    rows: list[Row] = [sweep.rows[item.case.case_id] for item in sweep.planned if item.case.case_id in sweep.rows]
    parquet.write_results(folder, rows, {})
    parquet.write_samples(folder)
    pair_matrices.write(pair_matrices.of_runs([folder]), folder.path)
    folder.set_status("finished")
    report = judge(folder, {int(node): machine for node, machine in asked.machines.items()}, effect=asked.effect)
    if asked.against:
        drift.compare(report, Path(asked.against), folder)
    write(folder, asked, spent_s, as_dict(report, folder, spent_s))
    return report


def as_dict(report: HealthReport, folder: RunFolder, spent_s: float) -> dict[str, Any]:
    """Return what was found, as `check --format json` and check.json have it."""
    noise = report.noise
    return {
        "verdict": report.verdict,
        "named": [one.as_dict() for one in report.named],
        "doubts": report.doubts,
        "what": report.what,
        "parts": [{"name": part.name, "status": part.status, "text": part.text} for part in report.parts],
        "differs": report.differs,
        "limits": report.limits,
        "launches": report.launches,
        "noise": None if noise is None else {"ratio": noise.value, "low": noise.low, "high": noise.high},
        "hosts": [asdict(host) for host in report.hosts],
        "seconds": round(spent_s, 1),
        "run": folder.run_id,
    }
