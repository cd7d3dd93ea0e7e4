"""No process outlives the sweep that started it, whatever kills the sweep."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to end this process when its parent thread ends. Call it from the main thread, before torch.

    The setting survives exec, so it also serves between fork and exec. No effect outside Linux.
    """
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def start_time(pid: int) -> str:
    """Return when the process began, in the kernel's ticks: with the pid it names a process for good. "" if it is gone.

    A zombie counts as gone: it runs no more.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def is_alive(pid: int, started: str) -> bool:
    return bool(started) and start_time(pid) == started


def exit_if_orphaned(pid: int, started: str) -> None:
    """End at once if the sweep died before `die_with_parent` could take effect."""
    if started and not is_alive(pid, started):
        os._exit(1)
