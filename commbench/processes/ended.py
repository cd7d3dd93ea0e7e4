"""How a process ended that had no chance to say so, in words."""

from __future__ import annotations

import os
import signal

from commbench.units import format_size

_SHARED = "/dev/shm"
_FULL_BYTES = 16 << 20  # a bus error comes with the first page that finds no room


def by_signal(number: int) -> str:
    """Return `was killed by signal 9 (SIGKILL)`; of a bus error also whether shared memory is full, its usual cause."""
    named = signal.Signals(number).name if number in [*signal.Signals] else "unknown"
    text = f"was killed by signal {number} ({named})"
    return text + (_shared_memory() if number == signal.SIGBUS else "")


def _shared_memory() -> str:
    try:
        found = os.statvfs(_SHARED)
    except OSError:
        return ""
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    room = f"{format_size(free)} free of {format_size(total)}"
    if free < _FULL_BYTES:
        return f": {_SHARED} is full ({room}); docker run --shm-size=8g, or look for leftovers there"
    return f": memory that it shares could not be had; {_SHARED} has {room} now"
