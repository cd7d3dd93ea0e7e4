"""The sweep as the parent runs it: launch after launch, watching, storing, and surviving whatever a case does.

Success is read from the rows on disk, not from exit codes: launchers rewrite those.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from commbench.algorithms import outside
from commbench.analysis import bounds, summary
from commbench.analysis.best_so_far import BestSoFar
from commbench.launch import placement, supervise
from commbench.launch.job import RANKS_END_S, Job
from commbench.processes.orphans import start_time
from commbench.records import Case, Measurement, PlannedCase, Row, Status
from commbench.run_folder import RunFolder, Tail, repair
from commbench.stats import LAUNCHES_FOR_INTERVAL
from commbench.sweep import plan
from commbench.sweep.plan import Launch
from commbench.units import format_seconds

_STARTS_TRIED = 2  # launches that end before their first case, in a row


class SweepReporter(Protocol):
    """Hears what the sweep has to say while it runs."""

    def progress(self, done: int, total: int, seconds_left: float | None, what: str, best: str) -> None: ...

    def row(self, row: Row) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(slots=True)
class LaunchProgress:
    """Knows what a launch has said of its cases."""

    began: set[str] = field(default_factory=set)
    running: str | None = None  # the case that was being measured when it stopped
    timed_out: bool = False


class Sweep:
    """Measures one run, from its first launch or from where a killed one stopped."""

    def __init__(
        self,
        folder: RunFolder,
        planned: Sequence[PlannedCase],
        *,
        seed: int,
        launchers: Mapping[str, str],
        timeout_s: float,
        reporter: SweepReporter,
        alike: Callable[[Case], str] | None = None,
        rates: bounds.Rates | None = None,
        before: str = "",
    ) -> None:
        """`launchers` is the launcher of each transport, `rates` are those of links that the user declares.

        `before` is what every rank does first in each launch: see `Job.before`.

        `alike`, if there is one, names what a case tries: after a hang, nothing of the same name is tried again.
        """
        self.folder = folder
        self.planned = planned
        self.launchers = launchers
        self.timeout_s = timeout_s
        self.reporter = reporter
        self.rows: dict[str, Row] = {}
        self.launches = list(plan.launches(planned, seed=seed))
        self._needed: dict[str, int] = {}
        for item in self.launches:
            for case in item.cases:
                self._needed[case.case_id] = self._needed.get(case.case_id, 0) + 1
        self._cases = {item.case.case_id: item.case for item in planned}
        self._done: dict[str, dict[int, Measurement]] = {}  # case -> launch -> measurement
        self._alike = alike
        self._noted: set[str] = set()  # what ranks had to say, once each
        self._waiting: list[str] = []  # cases with a new measurement whose samples are not there yet
        self._samples = summary.Samples(folder)
        self._best = BestSoFar()
        self._rates = rates
        self.before = before
        self._measured_now = 0
        self._began = time.monotonic()

    def load(self, *, retry_failed: bool = False, tell: bool = False) -> None:
        """Take over what the run already has, and finish cases that lack only their row. `tell`: report all rows.

        A row whose measurements or samples were damaged counts no more: the case is measured again.
        """
        rows = self.folder.rows()
        if retry_failed:
            rows = {key: row for key, row in rows.items() if row.status in (Status.OK, Status.SKIPPED)}
        for measurement in self.folder.measurements():
            case_id = measurement.case_id
            if retry_failed and measurement.status is not Status.OK and case_id not in rows:
                continue
            if measurement.status is Status.OK and not self._samples.has(measurement):
                continue
            if case_id in self._cases:
                self._done.setdefault(case_id, {})[measurement.launch] = measurement
                self._best.add(self._cases[case_id], measurement)
        self.rows = {key: row for key, row in rows.items() if self._stands(row)}
        for row in self.rows.values() if tell else ():
            self.reporter.row(row)
        for case_id in self._done:
            self._finish_if_complete(self._cases[case_id])

    def _stands(self, row: Row) -> bool:
        """Return whether all that a row was made of is still there."""
        if row.case_id not in self._cases:
            return False
        measured, needed = len(self._done.get(row.case_id, {})), self._needed.get(row.case_id, 0)
        return row.status is not Status.OK or measured >= needed

    def run(self, enough: Callable[[int], bool] = lambda launch: False) -> None:
        """Measure all that is not measured yet. KeyboardInterrupt ends the running launch and passes on.

        enough: asked before each launch, by its number, whether to leave out all that are left.
        """
        self.finish_skipped()
        for item in self.launches:
            if enough(item.index):
                return
            self._run_launch(item)

    def finish_skipped(self) -> None:
        """Write the rows of cases that cannot run here."""
        for item in self.planned:
            if item.skip and item.case.case_id not in self.rows:
                self._finish(summary.skipped_row(item.case, item.skip))

    @property
    def total(self) -> int:
        return sum(self._needed.values())

    @property
    def done(self) -> int:
        """Return how many measurements are made or, as their case has failed, not needed any more."""
        return sum(
            needed if case_id in self.rows else len(self._done.get(case_id, {}))
            for case_id, needed in self._needed.items()
        )

    def _run_launch(self, item: Launch) -> None:
        failed_starts = 0
        while pending := [case for case in item.cases if self._wants(case, item.index)]:
            job = self._job(item, pending)
            what = f"launch {item.index + 1}, {item.setup}"
            progress = self._watch(job, what)
            while self._waiting:
                self._finish_if_complete(self._cases[self._waiting.pop()])
            left = [case for case in pending if self._wants(case, item.index)]
            if not left:
                return
            reason = self._why(job, progress)
            if progress.running is not None and self._wants(self._cases[progress.running], item.index):
                failed_starts = 0
                status = Status.TIMEOUT if progress.timed_out else Status.ERROR
                self._fail(job, self._cases[progress.running], status, reason)
                continue
            failed_starts += not progress.began
            if failed_starts >= _STARTS_TRIED:
                for case in left:
                    self._fail(job, case, Status.ERROR, f"the launch did not start: {reason}")

    def _wants(self, case: Case, index: int) -> bool:
        return case.case_id not in self.rows and index not in self._done.get(case.case_id, {})

    def _settle(self) -> None:
        """Wait for ranks of a launch that broke, which may still be ending, and cut off a line that they left torn."""
        self.folder.ranks_ended(wait_s=RANKS_END_S)
        repair(self.folder.measurements_path)

    def _job(self, item: Launch, cases: Sequence[Case]) -> Job:
        self._settle()
        logs = self.folder.path / "logs"
        attempts = (f"{item.index:03d}-{item.setup.key[:6]}-{number}" for number in range(10**6))
        attempt = next(name for name in attempts if not (logs / name).exists())
        return Job(
            run_dir=str(self.folder.path),
            attempt=attempt,
            before=self.before,
            launch=item.index,
            setup=item.setup,
            cases=tuple(cases),
            timeout_s=self.timeout_s,
            algorithms=outside.for_ranks(self.folder.path, {(case.collective, case.algorithm) for case in cases}),
            host=platform.node(),
            placements=tuple(placement.of_launch(item.setup, self.launchers[item.setup.transport])),
            parent_pid=os.getpid(),
            # Ranks that Slurm starts may be on other hosts, where this pid is somebody else's or nobody's.
            parent_started="" if self.launchers[item.setup.transport] == "slurm" else start_time(os.getpid()),
        )

    def _watch(self, job: Job, what: str) -> LaunchProgress:
        progress = LaunchProgress()
        measurements = Tail(self.folder.measurements_path)

        def on_event(event: dict[str, Any]) -> None:
            match event["event"]:
                case "begin":
                    progress.running = event["case_id"]
                    progress.began.add(event["case_id"])
                case "note" if event["text"] not in self._noted:
                    self._noted.add(event["text"])
                    self.reporter.note(event["text"])
                case "queued":
                    self._tell(f"{what}, Slurm job {event['job_id']} waits: {event['reason']}")

        def collect() -> bool:
            new = self._collect(measurements, progress)
            if new:
                self._tell(what)
            return new

        self._tell(what)
        launcher = self.launchers[job.setup.transport]
        progress.timed_out = supervise.watch(job, launcher, on_event, collect).timed_out
        return progress

    def _collect(self, measurements: Tail, progress: LaunchProgress) -> bool:
        new = measurements.read(Measurement)
        for measurement in new:
            self._done.setdefault(measurement.case_id, {})[measurement.launch] = measurement
            self._best.add(self._cases[measurement.case_id], measurement)
            self._measured_now += 1
            if progress.running == measurement.case_id:
                progress.running = None
            if measurement.status in (Status.WRONG_RESULT, Status.DECLARATION_MISMATCH):
                self._note_failure(self._cases[measurement.case_id], measurement)
            if self._needed.get(measurement.case_id, 0) >= LAUNCHES_FOR_INTERVAL or self._has_samples(measurement):
                self._finish_if_complete(self._cases[measurement.case_id])
            else:  # a network's file system may show them later than the measurement
                self._waiting.append(measurement.case_id)
        return bool(new)

    def _has_samples(self, measurement: Measurement) -> bool:
        return measurement.status is not Status.OK or self._samples.has(measurement)

    def _tell(self, what: str) -> None:
        left = None
        if self._measured_now >= 3:
            each = (time.monotonic() - self._began) / self._measured_now
            left = each * (self.total - self.done)
        self.reporter.progress(self.done, self.total, left, what, str(self._best))

    def _finish_if_complete(self, case: Case) -> None:
        if case.case_id in self.rows or case.case_id not in self._needed:
            return
        measured = self._done.get(case.case_id, {})
        failed = any(m.status is not Status.OK for m in measured.values())
        if failed or len(measured) == self._needed[case.case_id]:
            self._finish(summary.row(case, [measured[index] for index in sorted(measured)], self._samples, self._rates))

    def _finish(self, row: Row) -> None:
        self.folder.append_row(row)
        self.rows[row.case_id] = row
        self.reporter.row(row)
        if self._alike is not None and row.status is Status.TIMEOUT:
            name = self._alike(self._cases[row.case_id])
            for case_id in self._needed.keys() - self.rows.keys():
                if self._alike(self._cases[case_id]) == name:
                    reason = f"not tried: at {row.size_bytes} B it hung"
                    self._finish(summary.skipped_row(self._cases[case_id], reason))

    def _fail(self, job: Job, case: Case, status: Status, reason: str) -> None:
        """Write the measurement that the ranks could not write themselves."""
        self._settle()
        measurement = Measurement(
            case_id=case.case_id,
            launch=job.launch,
            attempt=job.attempt,
            order=job.cases.index(case),
            status=status,
            reason=reason,
        )
        self.folder.append_measurement(measurement)
        self._done.setdefault(case.case_id, {})[job.launch] = measurement
        self._finish_if_complete(case)
        self._note_failure(case, measurement)

    def _note_failure(self, case: Case, measurement: Measurement) -> None:
        self.reporter.note(f"{case.label}, {case.size_bytes} B: {measurement.status}: {measurement.reason}")

    def _why(self, job: Job, progress: LaunchProgress) -> str:
        """Return the first failing rank and its reason; its last lines go to the reporter."""
        if progress.timed_out:
            where = "" if progress.began else " (it did not even start a case)"
            return f"no progress for {format_seconds(self.timeout_s)}{where}{supervise.explain_silence(job)}"
        reason = supervise.explain(job, self.launchers[job.setup.transport])
        reason.stop_if_full()
        what = reason.text or "the launcher ended early"
        self.reporter.note(f"{what}; {reason.shown()}")
        return what
