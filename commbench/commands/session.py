"""A sweep in progress: what it tells, how it is interrupted, and how it ends."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from commbench import output
from commbench.commands.prepare import (
    Request,
)
from commbench.console import Talk
from commbench.records import Row, Status
from commbench.runner import Sweep
from commbench.store import RunFolder

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class Reporter:
    """Progress to stderr, rows to stdout."""

    def __init__(self, talk: Talk, writer: output.Writer) -> None:
        self.talk = talk
        self.writer = writer
        self.progress = talk.progress
        self.note = talk.note

    def row(self, row: Row) -> None:
        self.writer.row(row)
        self.talk.row(row)


def measure(request: Request, folder: RunFolder, sweep: Sweep, talk: Talk) -> int:
    _set_status(folder, "running")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with talk:
            sweep.run()
    except KeyboardInterrupt:
        _set_status(folder, "interrupted")
        talk.note(f"interrupted; {sweep.done} of {sweep.total} measurements are kept")
        talk.note(f"go on with: commbench sweep --resume {_short(folder.path)}")
        return EXIT_INTERRUPTED
    assert isinstance(sweep.reporter, Reporter)
    return finish(request, folder, sweep, sweep.reporter.writer, talk)


def finish(request: Request, folder: RunFolder, sweep: Sweep, writer: output.Writer, talk: Talk) -> int:
    """Tables, Parquet, plots and the last words of a run whose cases are all finished."""
    from commbench import tables

    rows = [sweep.rows[item.case.case_id] for item in sweep.planned if item.case.case_id in sweep.rows]
    meta = folder.read_json("run.json")
    writer.end(rows, meta)
    tables.write_results(folder, rows)
    tables.write_samples(folder)
    failed = [row for row in rows if row.status not in (Status.OK, Status.SKIPPED)]
    _set_status(folder, "finished")
    if request.plots and any(row.status is Status.OK for row in rows):
        from commbench import plots

        for path in plots.draw(tables.frame(rows, folder.run_id), meta, folder.path / "plots"):
            talk.note(f"plot: {_short(path)}")
    ok = sum(row.status is Status.OK for row in rows)
    talk.note(
        f"{ok} cases ok, {len(rows) - ok - len(failed)} skipped, {len(failed)} failed; run: {_short(folder.path)}"
    )
    if failed:
        talk.note(f"measure the failed ones again: commbench sweep --resume {_short(folder.path)} --retry-failed")
    return EXIT_FAILED if failed else EXIT_OK


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _set_status(folder: RunFolder, status: str) -> None:
    about = folder.read_json("run.json")
    about["status"] = status
    about["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
    folder.write_json("run.json", about)


def _short(path: Path) -> str:
    """Relative where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
