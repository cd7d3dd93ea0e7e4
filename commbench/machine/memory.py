"""How much memory there is, how large the last-level cache is, and how many buffers get past it."""

from __future__ import annotations

import functools
from pathlib import Path

from commbench.machine import cgroup

MOST_PAIRS = 65536
_DEFAULT_CACHE_BYTES = 64 << 20
_HEADROOM = 0.9  # the kernel's own estimate is one; whoever takes all of it meets the out-of-memory killer


def available_bytes(root: str = "/") -> int:
    """Return the bytes that the kernel says are available, within this process's control group."""
    files = cgroup.AbsoluteFiles(root)
    left = cgroup.memory_left(files)
    limits = [_meminfo(files), *([left[0]] if left else [])]
    return int(max(0, min(limits)) * _HEADROOM)


def _meminfo(files: cgroup.AbsoluteFiles) -> int:
    for line in (files.text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


@functools.cache
def last_level_cache_bytes(root: str = "/sys/devices/system/cpu/cpu0/cache") -> int:
    """Return the largest cache of the first CPU, or 64 MiB where the kernel does not say."""
    sizes = []
    for file in Path(root).glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1024, "M": 1024**2}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes, default=_DEFAULT_CACHE_BYTES)


def buffer_pairs(pair_bytes: int, cache_bytes: int, *, cold: bool) -> int:
    """Return how many (output, input) pairs take turns: one, or as many as fill twice the cache, at least two."""
    return max(2, -(-2 * cache_bytes // pair_bytes)) if cold else 1


def as_warm(pair_bytes: int, cache_share: int) -> bool:
    """Return whether two pairs by turns are as warm as one: both fit into the rank's cache, or not even one does."""
    return 2 * pair_bytes <= cache_share or pair_bytes > cache_share
