"""Lists of CPUs as the kernel and taskset write them: `0-3,8`."""

from __future__ import annotations

import re
from collections.abc import Collection

_LARGEST = 65_535  # far above what the kernel knows; a typing error shall not fill the memory
_PART = re.compile(r"(\d+)(?:-(\d+))?")


def text(cpus: Collection[int]) -> str:
    """Return `0-3,8`; "" for none."""
    parts: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1][1:] = [cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def parse(words: str) -> tuple[int, ...]:
    """Return the CPUs of what `text` writes, ascending. Raises `ValueError` for any other text."""
    cpus: set[int] = set()
    for part in words.replace(" ", "").split(","):
        match = _PART.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= _LARGEST:
            raise ValueError(f"{part!r} is neither a CPU nor a range of CPUs")
        cpus |= set(range(first, last + 1))
    return tuple(sorted(cpus))
