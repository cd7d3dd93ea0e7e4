"""Sizes and numbers as people type and read them: powers of 1024 for bytes, 1e9 for GB/s."""

from __future__ import annotations

import re

from commbench.errors import UsageError

_SUFFIX = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
MOST_BYTES = 2**53  # of a size: more no record holds, as not every reader of JSON has such integers
_YEAR_S = 366 * 86_400.0
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """Bytes of `8`, `32K`, `1MiB`, `1.5G`: K, M, G and T are powers of 1024, as in nccl-tests.

    Raises `UsageError` for anything else, for negative values and for fractions of a byte.
    """
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise UsageError(f"bad size {text!r}", hint="write bytes or powers of 1024: 8, 32K, 1MiB, 1G")
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise UsageError(f"bad size {str(text)!r}", hint="write bytes or powers of 1024: 8, 32K, 1MiB, 1G")
    value = float(match[1]) * _SUFFIX[match[2].upper()]
    if not value <= MOST_BYTES:
        raise UsageError(
            f"bad size {str(text)!r}: it is too large", hint="a size is at most 2^53 bytes, which are 8192 TiB"
        )
    if value != int(value):
        raise UsageError(f"bad size {str(text)!r}: it is {value} bytes", hint="a size is a whole number of bytes")
    return int(value)


def format_size(size_bytes: float) -> str:
    """`1 KiB`, `1.5 MiB`, `96 B`."""
    for suffix, unit in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.4g} {suffix}"
    return f"{size_bytes:.4g} B"


def parse_seconds(key: str, text: str) -> float:
    """Return the seconds of `90`, `90s`, `8m`, `1.5h`, the value of `key`. Raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if match is None or not float(match[1]):
        raise UsageError(f"{key}={text}", hint="a time above 0: 90s, 8m, 1.5h")
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if not seconds <= _YEAR_S:
        raise UsageError(f"{key}={text}", hint="a time up to a year: 90s, 8m, 1.5h")
    return seconds


def format_seconds(seconds: float) -> str:
    """`8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def unit_of_us(time_us: float) -> tuple[float, str]:
    """Return what to divide microseconds of about this size by, and the name of the unit: ms from 1 ms on."""
    return (1000.0, "ms") if time_us >= 1000 else (1.0, "us")


def gbps(size_bytes: float, time_us: float) -> float:
    """GB/s (1e9 bytes per second) of `size_bytes` in `time_us` microseconds."""
    return size_bytes / time_us / 1e3
