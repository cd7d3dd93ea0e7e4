"""All processes below this one: those whose parent ended first are adopted, so that none can hide."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def adopt() -> None:
    """Ask the kernel to make this process the parent of every descendant whose own parent ends. Linux only."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def alive() -> list[psutil.Process]:
    """Return the descendants of this process that still run; a zombie runs no more."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def send(number: signal.Signals) -> None:
    """Send a signal to every descendant."""
    for process in alive():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(number)


def reap() -> dict[int, int]:
    """Collect the children that have ended: their wait status by pid."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended
