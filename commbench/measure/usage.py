"""What a measurement used beside time: CPUs, whoever kept them busy, and the links of an emulated fabric."""

from __future__ import annotations

import contextlib
import os
import platform
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commbench import fabric
from commbench.records import Setup
from commbench.transports.base import Transport

_IDLE = (3, 4)  # columns of /proc/stat: idle, and idle while something waits for a disk
_FEWEST_TICKS = 10
_ALL = 8  # user, nice, system, idle, iowait, irq, softirq, steal; what follows is in them already


class Meter:
    """What a measurement used beside time: the CPUs, and the links of an emulated fabric by their own counters."""

    def __init__(self, setup: Setup, transport: Transport) -> None:
        self._transport = transport
        self._emulated = setup.emulated
        # Of how many ranks one speaks for their links.
        self._ranks_per_node = 1 if setup.emulated is not None and setup.emulated.rails else setup.ranks_per_node
        self._speaks = transport.rank % self._ranks_per_node == 0  # for its node
        self._aside_s = self._aside_cpu_s = 0.0
        self._spine = 0.0 if self._emulated is None else fabric.spine_bytes(self._emulated)
        self._before, self._ticks = self._counters(), _ticks()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave out what is done inside: neither this time nor these CPUs are the measurement's."""
        began, began_cpu = time.monotonic(), time.thread_time()
        yield
        self._aside_s += time.monotonic() - began
        self._aside_cpu_s += time.thread_time() - began_cpu

    def read(self, calls: int) -> dict[str, Any]:
        """Collective: the fields of a measurement of `calls` calls."""
        # All ranks have left their last call, or the counters would miss what is still under way.
        self._transport.barrier()
        after = self._counters()
        used = {"cpu_percent": _percent(self._ticks, _ticks(), *self._of_shared_cpus())}
        if self._emulated is None:
            return used
        mine = [last - first for first, last in zip(self._before, after, strict=True)]
        every = self._transport.all_gather(mine)
        sent, links = float(every[:, : len(mine) // 2].sum()), every[:: self._ranks_per_node]
        return used | {
            "wire_bytes": sent / calls,
            **(
                {"spine_bytes": (fabric.spine_bytes(self._emulated) - self._spine) / calls}
                if self._emulated.rails
                else {}
            ),
            "link_imbalance": float(links.max() / links.mean()) if links.any() else None,
        }

    def _of_shared_cpus(self) -> tuple[float, float]:
        """(busy, total) clock ticks that ranks with these CPUs have spent aside. Collective."""
        cpus = sorted(os.sched_getaffinity(0))
        place = float(zlib.crc32(f"{platform.node()} {cpus}".encode()))
        every = self._transport.all_gather([place, self._aside_cpu_s, self._aside_s])
        here = every[every[:, 0] == place]
        per_s = os.sysconf("SC_CLK_TCK")
        return float(here[:, 1].sum()) * per_s, float(here[:, 2].max()) * per_s * len(cpus)

    def _counters(self) -> list[float]:
        if self._emulated is None:
            return []
        values = fabric.counters(self._emulated)
        return values if self._speaks else [0.0] * len(values)


def _ticks() -> tuple[float, float]:
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


def _percent(before: tuple[float, float], after: tuple[float, float], busy_aside: float, aside: float) -> float | None:
    """Busy share of the time between two readings; None where they are closer than the kernel's clock ticks."""
    total = after[1] - before[1] - aside
    enough = total >= _FEWEST_TICKS * len(os.sched_getaffinity(0))
    busy = after[0] - before[0] - busy_aside
    return min(max(100 * busy / total, 0.0), 100.0) if enough else None
