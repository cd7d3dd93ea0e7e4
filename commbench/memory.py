"""How much memory there is, how large the last-level cache is, and how many buffers get past it."""

from __future__ import annotations

import functools
from pathlib import Path

_DEFAULT_CACHE_BYTES = 64 << 20
_MOST_PAIRS = 4096


def available_bytes() -> int:
    """Memory that can be used without swapping, from the kernel; a huge number where it does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62


@functools.cache
def last_level_cache_bytes(root: str = "/sys/devices/system/cpu/cpu0/cache") -> int:
    """The largest cache of the first CPU, or 64 MiB where the kernel does not tell."""
    sizes = []
    for file in Path(root).glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1024, "M": 1024**2}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes, default=_DEFAULT_CACHE_BYTES)


def buffer_pairs(pair_bytes: int, *, cold: bool) -> int:
    """How many (output, input) pairs take turns: one, or as many as fill twice the last-level cache, at least two."""
    if not cold:
        return 1
    return max(2, min(_MOST_PAIRS, -(-2 * last_level_cache_bytes() // pair_bytes)))
