"""The stages of tuning as run folders: every number of a profile can be read again, drawn and compared."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from commbench.analysis import bounds
from commbench.console import Console
from commbench.output import parquet
from commbench.profile import Scope
from commbench.records import NOMINAL, Case, Measurement, PlannedCase, Row, Setup, Status
from commbench.run_folder import RunFolder
from commbench.serialise import digest
from commbench.sweep import prepare
from commbench.sweep.config import SweepConfig
from commbench.sweep.prepare import SweepRequest
from commbench.sweep.runner import Sweep
from commbench.tune import CaseTimes, ProcessGroup
from commbench.tune.journal import Journal, StageDone
from commbench.tune.space import candidate_key

_START_S, _OVERHEAD_S = 4.0, 0.2  # before the first stage has shown better


class StageReporter:
    """Progress and notes; the rows are in the run folders."""

    def __init__(self, console: Console, stage: str) -> None:
        self._console = console
        self._stage = stage
        self.note = console.note

    def progress(self, done: int, total: int, seconds_left: float | None, what: str, best: str = "") -> None:
        self._console.progress(done, total, seconds_left, f"{self._stage}: {what}", best)

    def row(self, row: Row) -> None:
        self._console.row(row)


class Stages:
    """Measure each stage in a run folder of its own, inside `request.out`."""

    def __init__(
        self, request: SweepRequest, config: SweepConfig, launchers: Mapping[str, str], console: Console,
        journal: Journal,
    ) -> None:  # fmt: skip
        """Measure into `request.out`, whose `journal` has the stages that are done."""
        self._request = request
        self._config = config
        self._launchers = launchers
        self._console = console
        self._journal = journal
        self._began = time.monotonic()
        self.spent_s = 0.0  # when the last stage ended: whoever goes on finds the same, and decides the same
        self.folders: list[RunFolder] = []
        self.start_s, self.overhead_s = _START_S, _OVERHEAD_S
        self._known: dict[str, tuple[dict[str, str], str]] = {}  # transport -> versions, GPU
        self._nominal: dict[str, str] = {}  # set-up -> what is between its nodes, where they are no machines

    @property
    def run(self) -> str:
        return self.folders[-1].run_id if self.folders else ""

    @property
    def seconds(self) -> float:
        """Return what tuning has taken until now, without the time when it was stopped."""
        return time.monotonic() - self._began

    def _set_clock(self, spent_s: float) -> None:
        self._began = time.monotonic() - spent_s

    def measure(self, stage: str, cases: Sequence[Case]) -> dict[str, CaseTimes]:
        planned = [PlannedCase(case=case) for case in cases]
        if replayed := self._journal.replay(planned):
            folder, done = replayed
            self.folders.append(folder)
            self.spent_s, self.start_s, self.overhead_s = done.spent_s, done.start_s, done.overhead_s
            self._set_clock(done.spent_s)
            return self._times(folder, cases, folder.rows())
        began = time.monotonic()
        # Each stage has orders of its own: what comes first in a launch of one comes later in the next.
        seed = (self._config.seed + len(self.folders)) % 2**63
        config = replace(self._config, recipe=stage, seed=seed)
        stopped = self._journal.unfinished(planned)
        folder = stopped or prepare.create(self._request, stage, [config], planned, self._launchers)
        self.folders.append(folder)
        sweep = Sweep(
            folder, planned, seed=config.seed, launchers=self._launchers, timeout_s=config.timeout,
            reporter=StageReporter(self._console, stage), alike=candidate_key,
            rates=bounds.declared(config.link_rate),
        )  # fmt: skip
        known: set[str] = set()
        if stopped is not None:
            sweep.load()
            known = {m.attempt for m in folder.measurements()}
            self._set_clock(self.seconds + sum(m.elapsed_s for m in folder.measurements()))
            self._console.note(f"resuming {folder.run_id}: {sweep.done} of {sweep.total} measurements are there")
        try:
            sweep.run()
        finally:
            self._end(folder, sweep)
        self._learn([m for m in folder.measurements() if m.attempt not in known], cases, began)
        self.spent_s = self.seconds
        self._journal.add(StageDone(run=folder.run_id, spent_s=self.spent_s, start_s=self.start_s,
                                    overhead_s=self.overhead_s))  # fmt: skip
        return self._times(folder, cases, sweep.rows)

    def _learn(self, measurements: Sequence[Measurement], cases: Sequence[Case], began: float) -> None:
        """Learn from new measurements what a launch costs, and a measurement beyond its cap."""
        attempts = {m.attempt for m in measurements}
        inside = sum(m.elapsed_s for m in measurements)
        if attempts:
            self.start_s = max(0.05, (time.monotonic() - began - inside) / len(attempts))
        caps = {case.case_id: case.policy.cap_s for case in cases}
        over = [max(0.0, m.elapsed_s - caps[m.case_id]) for m in measurements if m.status is Status.OK]
        if over:
            self.overhead_s = float(np.mean(over))

    def _times(self, folder: RunFolder, cases: Sequence[Case], rows: Mapping[str, Row]) -> dict[str, CaseTimes]:
        """Return what a stage has measured, and remember what its ranks recorded."""
        measurements = folder.measurements()
        times = {}
        for case in cases:
            row = rows.get(case.case_id)
            of_case = [m for m in measurements if m.case_id == case.case_id and m.status is Status.OK and m.time_us]
            times[case.case_id] = CaseTimes(
                status=row.status if row else Status.ERROR,
                reason=row.reason if row else "it was not measured",
                time_us={ProcessGroup(m.launch, m.attempt): float(m.time_us or 0.0) for m in of_case},
            )
            if row and row.fabric in NOMINAL:
                self._nominal[case.setup.key] = row.fabric
        for case in cases:
            self._read_versions(folder, case.setup)
        return times

    def _end(self, folder: RunFolder, sweep: Sweep) -> None:
        rows = [sweep.rows[item.case.case_id] for item in sweep.planned if item.case.case_id in sweep.rows]
        parquet.write_results(folder, rows, {})
        parquet.write_samples(folder)
        folder.set_status("finished" if len(rows) == len(sweep.planned) else "interrupted")
        folder.lock.release()

    def _read_versions(self, folder: RunFolder, setup: Setup) -> None:
        """Remember what rank 0 of a launch recorded of its libraries and its GPU."""
        if setup.transport in self._known:
            return
        for path in sorted((folder.path / "logs").glob(f"*-{setup.key[:6]}-*/rank-0.json")):
            record: dict[str, Any] = json.loads(path.read_text())
            gpu = record.get("device", {}).get("name") or record.get("device", {}).get("gpu") or ""
            self._known[setup.transport] = (dict(record["versions"]), str(gpu))
            return

    def scope(self, setup: Setup, groups: str = "world") -> Scope:
        """Return where choices for groups of ranks of this set-up hold: in groups of the same layout."""
        layout = setup.layout.within(groups)
        versions, gpu = self._known.get(setup.transport, ({}, ""))
        values: dict[str, Any] = {
            "transport": setup.transport,
            "nodes": layout.nodes,
            "ranks_per_node": layout.ranks_per_node,
            "versions": versions,
            "gpu": gpu,
            "fabric": str(setup.emulated) if setup.emulated else self._nominal.get(setup.key, ""),
            "env": dict(setup.env),
            "binding": setup.binding,
            "cpu_masks": setup.cpu_masks,
            "binding_memory": setup.binding_memory,
        }
        return Scope(id=digest(values)[:8], **values)


def new_folder(parent: Path) -> Path:
    """Create `parent/STAMP-tune-XXXXXX`, for the run folders of one tuning, and let `parent/latest` point to it."""
    folder = RunFolder.create(parent, "tune", parts=())
    folder.link_latest()
    return folder.path
