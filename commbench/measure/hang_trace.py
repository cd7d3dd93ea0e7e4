"""What a rank that makes no progress is doing, written down before the sweep ends it."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commbench.files import write_atomically
from commbench.launch.job import TRACE_DOING
from commbench.run_folder import timestamp

_AFTER = 0.7  # of the timeout: late enough to mean something, early enough to be on disk when the rank is killed
_POLL_S = 1.0  # while a rank is silent
_LONGEST_WAIT_S = 60.0
_MOST_COLLECTIVES = 50


class Tracer(threading.Thread):
    """Writes `path`, which ends in `rank-N.txt`, once a hang; progress after all takes the file away again.

    `what` says in a few words what the rank is at; it is called in this thread. While there is progress this thread
    sleeps: it wakes when the time would be up, not at every beat. A rank that is stuck without giving up the
    interpreter's lock leaves no file.
    """

    def __init__(self, path: Path, timeout_s: float, what: Callable[[], str]) -> None:
        super().__init__(name="tracer", daemon=True)
        self._path = path
        self._after_s = timeout_s * _AFTER
        self._what = what
        self._last = time.monotonic()
        self._stopped = threading.Event()

    def beat(self) -> None:
        """There was progress."""
        self._last = time.monotonic()

    def stop(self) -> None:
        self._stopped.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(_POLL_S)

    def run(self) -> None:
        written: float | None = None  # the beat after which nothing came, once that is on disk
        pause = self._after_s
        while not self._stopped.wait(min(pause, _LONGEST_WAIT_S)):
            last = self._last
            silent = time.monotonic() - last
            if written is not None and last != written:
                self._take_back()
                written = None
            if written is None and silent >= self._after_s:
                self._write(silent)
                written = last
            pause = self._after_s - silent if written is None else min(_POLL_S, self._after_s / 4)
        if written is not None and self._last != written:
            self._take_back()

    def _take_back(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self, silent_s: float) -> None:
        rank = re.search(r"rank-(\d+)", self._path.name)
        text = f"rank {rank[1] if rank else '?'}, {timestamp()}: no progress for {silent_s:.1f} s\n"
        text += f"{TRACE_DOING}{' '.join(_tried(self._what).split())}\n"
        text += _tried(lambda: _stacks(leave_out=self.ident))
        self._replace(text)
        if pending := _tried(_nccl):  # only now: a library that hangs may not answer either
            self._replace(f"{text}\nNCCL's unfinished collectives\n{pending}")

    def _replace(self, text: str) -> None:
        with contextlib.suppress(OSError):
            write_atomically(self._path, text.encode(errors="backslashreplace"))


def _tried(tell: Callable[[], str]) -> str:
    """Words, whatever happens."""
    try:
        return tell()
    except Exception as error:
        return f"unknown, {type(error).__name__}: {error}\n"


def _stacks(*, leave_out: int | None) -> str:
    """The Python stacks of all threads, the main thread's first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    text = ""
    for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != main):
        if ident != leave_out:
            stack = "".join(traceback.format_stack(frame))
            text += f"\nthread {names.get(ident, ident)}, innermost call last\n{stack}"
    return text


def _nccl() -> str:
    """A line for each collective that is in the flight recorder of a loaded torch and not done."""
    try:
        library = sys.modules["torch"]._C._distributed_c10d
        dump = library._dump_nccl_trace_json
    except (KeyError, AttributeError):  # no torch here, or one without NCCL
        return ""
    entries = json.loads(dump(includeCollectives=True, onlyActive=True)).get("entries", [])  # absent where empty
    lines = [_collective(entry) for entry in entries if entry.get("state") != "completed"]
    if len(lines) > _MOST_COLLECTIVES:
        lines[_MOST_COLLECTIVES:] = [f"and {len(lines) - _MOST_COLLECTIVES} more"]
    return "".join(f"  {line}\n" for line in lines or ["none"])


def _collective(entry: dict[str, Any]) -> str:
    number = entry.get("p2p_seq_id" if entry.get("is_p2p") else "collective_seq_id")
    age = datetime.now(UTC).timestamp() - entry.get("time_created_ns", 0) / 1e9
    sizes = f"{entry.get('input_sizes')} to {entry.get('output_sizes')}"
    return f"{number} {entry.get('profiling_name')} {sizes}, {entry.get('state')}, enqueued {age:.1f} s ago"
