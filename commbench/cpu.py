"""How busy the CPUs are, whoever keeps them so: ranks, the kernel's network, other programs."""

from __future__ import annotations

import os
from pathlib import Path

_IDLE = (3, 4)  # columns of /proc/stat: idle, and idle while something waits for a disk
_ALL = 8  # user, nice, system, idle, iowait, irq, softirq, steal; what follows is in them already


def ticks() -> tuple[float, float]:
    """(busy, total) clock ticks so far of the CPUs that this process may use; zeros where the kernel does not tell."""
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    busy = total = 0.0
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    for line in lines:
        name, *fields = line.split()
        if name in mine:
            values = [float(field) for field in fields[:_ALL]]
            total += sum(values)
            busy += sum(values) - sum(values[column] for column in _IDLE)
    return busy, total


def percent(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    """Busy share of the time between two readings; None where they are closer than the kernel's clock ticks."""
    total = after[1] - before[1]
    return 100 * (after[0] - before[0]) / total if total >= _FEWEST_TICKS else None


_FEWEST_TICKS = 10
