"""Everything that is said to a person: on stderr, from the parent only. The one place that uses rich."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Self

import rich.console
import rich.progress
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from commbench.records import Row, Status
from commbench.units import format_seconds, format_size

_PLAIN_EVERY_S = 10.0


def stderr_console() -> rich.console.Console:
    """Return a console that honours NO_COLOR, FORCE_COLOR, TERM=dumb and pipes."""
    # What people type is no markup: env.X=[/a] must not end the sweep.
    return rich.console.Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def print_error(message: str, hint: str) -> None:
    """Print one `error:` line and one `hint:` line. What is no UTF-8 in a name is shown escaped."""
    console = stderr_console()
    message, hint = (text.encode("utf-8", "backslashreplace").decode() for text in (message, hint))
    console.print(Text.assemble(("error: ", "bold red"), message))
    if hint:
        console.print(Text.assemble(("hint: ", "cyan"), hint))


class Console:
    """Shows live progress with the time left on a terminal, a plain line now and then elsewhere. A context manager."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._console = stderr_console()
        self._quiet = quiet
        self._verbose = verbose
        live = self._console.is_terminal and not os.environ.get("CI") and os.environ.get("TERM") != "dumb" and not quiet
        self._progress = (
            rich.progress.Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                TextColumn("{task.completed:.0f} of {task.total:.0f}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[best]}", markup=False),
                console=self._console,
                transient=True,
                refresh_per_second=2,  # drawing takes time from the ranks
                redirect_stdout=False,  # rows on stdout are data, and may go to a file
                redirect_stderr=False,
            )
            if live
            else None
        )
        self._task = self._progress.add_task("starting", total=1, left="", best="") if self._progress else None
        self._said = 0.0
        self._last_what = ""

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def progress(self, done: int, total: int, seconds_left: float | None, what: str, best: str = "") -> None:
        """Show how far it is. `best`: what leads so far, in words."""
        left = "" if seconds_left is None else f"about {format_seconds(seconds_left)} left"
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, description=what, left=left, best=best)
        elif not self._quiet and (what != self._last_what or time.monotonic() - self._said > _PLAIN_EVERY_S):
            self._said = time.monotonic()
            self._last_what = what
            said = ", ".join(filter(None, [f"{done} of {total} measurements", left]))
            self._console.print("; ".join(filter(None, [f"{what}: {said}", best])))

    def row(self, row: Row) -> None:
        if self._verbose and row.status is Status.OK:
            self.note(f"{row.label}, {format_size(row.size_bytes)}: {row.time_us:.1f} us, {row.busbw_gbps:.3f} GB/s")

    def note(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(text))

    def error(self, text: str) -> None:
        """Say what has gone wrong, even if nothing else is to be said."""
        self._console.print(Text(f"error: {text}"))
