"""Limits of control groups, version 1 and 2: of the group this process is in, and of those around it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

_ROOT = "/sys/fs/cgroup"
_UNLIMITED = 1 << 60  # version 1 writes "no limit" as the largest multiple of a page


class Texts(Protocol):
    """Reads the files, here or elsewhere."""

    def text(self, path: str) -> str | None:
        """Return the stripped content of a file, or None if it cannot be read."""
        ...


class AbsoluteFiles:
    """Reads this machine's files, or those below another root."""

    def __init__(self, root: str = "/") -> None:
        self._root = Path(root)

    def text(self, path: str) -> str | None:
        try:
            return (self._root / path.lstrip("/")).read_text().strip()
        except OSError:
            return None


def cpu_quota(system: Texts) -> float | None:
    """Return CPUs' worth of time, the least of all groups around this process; None without a limit."""
    quotas = []
    for folder in _folders(system, "cpu"):
        both = system.text(f"{folder}/cpu.max")
        if both is None:
            both = f"{system.text(f'{folder}/cpu.cfs_quota_us')} {system.text(f'{folder}/cpu.cfs_period_us')}"
        quota, _, period = both.partition(" ")
        if quota.isdigit() and period.isdigit():  # otherwise "max", "-1" or not there
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def usable_cpus() -> int:
    """Return how many CPUs this process can keep busy: those that it may use, or less by a quota of its groups."""
    quota = cpu_quota(AbsoluteFiles())
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def throttled_periods(system: Texts) -> int:
    """Return how often the kernel has stopped this process's groups because their quota was used up."""
    counts = [0]
    for folder in _folders(system, "cpu"):
        for line in (system.text(f"{folder}/cpu.stat") or "").splitlines():
            name, _, count = line.partition(" ")
            if name == "nr_throttled":
                counts.append(int(count))
    return max(counts)


def memory_left(system: Texts) -> tuple[int, int] | None:
    """Return the bytes that the tightest group still allows, and its limit; None without a limit."""
    limits = []
    for folder in _folders(system, "memory"):
        limit = _number(system, f"{folder}/memory.max") or _number(system, f"{folder}/memory.limit_in_bytes")
        used = _number(system, f"{folder}/memory.current") or _number(system, f"{folder}/memory.usage_in_bytes")
        if limit is not None and limit < _UNLIMITED:
            limits.append((limit - (used or 0) + _file_cache(system, folder), limit))
    return min(limits, default=None)


def _file_cache(system: Texts, folder: str) -> int:
    """Return the bytes of cached files: they count as used, but the kernel drops them when memory is needed."""
    stat = dict(line.split() for line in (system.text(f"{folder}/memory.stat") or "").splitlines())
    return int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)


def _number(system: Texts, path: str) -> int | None:
    text = system.text(path) or ""
    return int(text) if text.isdigit() else None


def _folders(system: Texts, controller: str) -> Iterator[str]:
    """Return this process's group and the groups around it, innermost first.

    Inside a container the path may be the host's, while the mount shows the group as its root: folders that are not
    there say nothing, and the walk ends at the root in any case.
    """
    for line in (system.text("/proc/self/cgroup") or "0::/").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [_ROOT, f"{_ROOT}/unified"]  # the second where both versions are in use
        elif controller in controllers.split(","):
            mounts = [f"{_ROOT}/{controller}"]
        else:
            continue
        group = PurePosixPath(path)
        for mount in mounts:
            for part in (group, *group.parents):
                yield mount + str(part).rstrip("/")
