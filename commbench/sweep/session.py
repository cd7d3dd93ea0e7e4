"""A sweep in progress: what it tells, how it is interrupted, and how it ends."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from commbench.analysis import bounds
from commbench.analysis.ratios import Speedup
from commbench.console import Console
from commbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, CorruptFile, storage
from commbench.output import writers
from commbench.output.answer import words
from commbench.output.answer.claims import tell
from commbench.output.answer.sweep import answer
from commbench.processes import streams
from commbench.records import PlannedCase, Row, Status
from commbench.run_folder import RunFolder
from commbench.sweep.prepare import SweepRequest
from commbench.sweep.runner import Sweep

if TYPE_CHECKING:
    import pandas as pd


class Draw(Protocol):
    """Draws a finished run: plots are above this floor, so a command brings it."""

    def __call__(self, frame: pd.DataFrame, meta: Mapping[str, Any], target: Path) -> list[Path]:
        """Draw the rows of `frame`, as run.json (`meta`) describes them, below `target`; return the files."""
        ...


class ConsoleReporter:
    """Writes progress to stderr, rows to stdout. Without a reader of stdout the sweep goes on: rows are on disk."""

    def __init__(self, console: Console, writer: writers.Writer) -> None:
        self.console = console
        self.writer: writers.Writer | None = writer
        self._ended = False
        self.progress = console.progress
        self.note = console.note

    def row(self, row: Row) -> None:
        self.console.row(row)
        self._write(lambda writer: writer.row(row))

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any], compared: Mapping[str, Speedup]) -> None:
        """Write the last of the output, once: an interrupt may come when all is written."""
        if not self._ended:
            self._ended = True
            self._write(lambda writer: writer.end(rows, meta, compared))

    def _write(self, write: Callable[[writers.Writer], None]) -> None:
        if self.writer is None:
            return
        write(self.writer)
        if error := streams.ended("stdout"):
            self.writer = None
            if streams.nobody_reads(error):
                self.note("nobody reads stdout any more; rows go to the run folder only")


def of_run(request: SweepRequest, folder: RunFolder, planned: Sequence[PlannedCase], console: Console) -> Sweep:
    """Return the sweep of a run folder, new or resumed or joined: how it runs is what its run.json says."""
    about = folder.read_json("run.json")
    return Sweep(
        folder,
        planned,
        seed=about["seed"],
        launchers=about["launchers"],
        timeout_s=about["timeout_s"],
        rates=bounds.declared(about.get("link_rate") or {}),
        reporter=ConsoleReporter(console, writers.writer(request.format, request.columns)),
    )


def measure(request: SweepRequest, folder: RunFolder, sweep: Sweep, console: Console, draw: Draw) -> int:
    """Run the sweep to its end, or to the point where somebody stops it, and draw it; return the exit code.

    Raises `EnvironmentProblem` where the disk takes no more.
    """
    retry = " --retry-failed" if request.retry_failed else ""
    go_on = f"go on with: commbench sweep --resume {_short(folder.path)}{retry}"
    with storage(folder.path, f"make room, then {go_on}"):
        folder.set_status("running")
        interrupt_on_sigterm()
        assert isinstance(sweep.reporter, ConsoleReporter)
        try:
            with console:
                sweep.run()
            return finish(request, folder, sweep, sweep.reporter, console, draw)
        except KeyboardInterrupt:
            folder.set_status("interrupted")
            show_partial(request, folder, sweep, console)
            console.note(f"interrupted; {sweep.done} of {sweep.total} measurements are kept")
            in_a_file = request.format in writers.TABLES and not sys.stdout.isatty()
            if sweep.reporter.writer is None or in_a_file:  # the answer, which says it too, is not on the screen
                console.note(go_on)
            return EXIT_INTERRUPTED
        except OSError:
            with contextlib.suppress(OSError):
                folder.set_status("interrupted")
            raise


def finish(
    request: SweepRequest, folder: RunFolder, sweep: Sweep, reporter: ConsoleReporter, console: Console, draw: Draw
) -> int:
    """Write tables, Parquet, plots and the last words of a run whose cases are all finished; return the exit code."""
    from commbench.analysis import pair_matrices, ratios
    from commbench.output import parquet

    rows = [sweep.rows[item.case.case_id] for item in sweep.planned if item.case.case_id in sweep.rows]
    meta = _meta(folder, sweep)
    compared = ratios.of_run(folder, rows)
    parquet.write_results(folder, rows, compared)
    parquet.write_samples(folder)
    meta["pairs"] = pair_matrices.of_runs([folder])
    pair_matrices.write(meta["pairs"], folder.path)
    complete = len(rows) == len(sweep.planned)
    interrupted = any(row.status is Status.INTERRUPTED for row in rows)
    folder.set_status("interrupted" if interrupted else "finished" if complete else "incomplete")
    reporter.end(rows, meta, compared)
    if request.format not in writers.TABLES:
        tell(answer(rows, compared, meta), console.note)
    failed = [row for row in rows if row.status not in (Status.OK, Status.SKIPPED)]
    if request.plots and any(row.status is Status.OK for row in rows):
        try:
            for path in draw(parquet.frame(rows, folder.run_id, compared), meta, folder.path / "plots"):
                console.note(f"plot: {_short(path)}")
        except (OSError, ValueError) as error:
            console.note(f"no plot: {error}; draw it again with: commbench plot {_short(folder.path)}")
    ok = sum(row.status is Status.OK for row in rows)
    console.note(
        f"{words.count(ok, 'case')} ok, {len(rows) - ok - len(failed)} skipped, {len(failed)} failed; "
        f"run: {_short(folder.path)}"
    )
    return EXIT_FAILED if failed or not complete else EXIT_OK


def show_partial(request: SweepRequest, folder: RunFolder, sweep: Sweep, console: Console) -> None:
    """Write the table and the answer of what a run has so far."""
    from commbench.analysis import ratios, so_far

    assert isinstance(sweep.reporter, ConsoleReporter)
    known = so_far.of_run(folder)
    rows, meta = list(known.rows.values()), {**_meta(folder, sweep), "partial": known.partial}
    compared = ratios.of_run(folder, rows)
    sweep.reporter.end(rows, meta, compared)
    if request.format not in writers.TABLES:
        tell(answer(rows, compared, meta), console.note)


def _meta(folder: RunFolder, sweep: Sweep) -> dict[str, Any]:
    """Return what tables, answers and plots want to know of the run."""
    return {
        **folder.read_json("run.json"), "folder": _short(folder.path), "planned": len(sweep.planned),
        "numa_nodes": numa_nodes(folder),
    }  # fmt: skip


def numa_nodes(folder: RunFolder) -> int:
    """Count the NUMA nodes of the host that began a run; 0 where its topology cannot be read."""
    try:
        machine = folder.read_json("topology.json").get("machine") or {}
    except CorruptFile:  # it holds no result
        return 0
    return len(machine.get("numa_nodes") or [])


def interrupt_on_sigterm() -> None:
    """Let SIGTERM, as schedulers send it, mean the same as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _short(path: Path) -> str:
    """Return the path, relative where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
