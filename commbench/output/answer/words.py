"""The words of all answers: counted things, times, ratios with intervals, ranges of sizes, commands to paste."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from commbench.stats import TOO_WIDE
from commbench.units import format_size, unit_of_us

_CLOSE = 0.05  # an interval with an end so near to 1 is written with one digit more

TOO_NOISY = f"too noisy to tell, with an interval wider than {TOO_WIDE:g}x"


def count(number: int, what: str) -> str:
    """`1 launch`, `6 launches`."""
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('ch') else 's'}"


def begun(text: str) -> str:
    """Return a sentence with a capital at its beginning, as titles have it."""
    return text[:1].upper() + text[1:]


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def times(low_us: float, high_us: float) -> str:
    """`20.1 us`, `812 us to 1.21 ms`."""
    texts = []
    for time_us in (low_us, high_us):
        scale, unit = unit_of_us(time_us)
        texts.append(f"{time_us / scale:.3g} {unit}")
    return " to ".join(dict.fromkeys(texts))


def interval(low: float | None, high: float | None) -> str:
    """` [1.46-1.54]`, with a blank before it; "" where there is none."""
    if low is None or high is None:
        return ""
    digits = decimals(low, high)
    return f" [{low:.{digits}f}-{high:.{digits}f}]"


def ratio(value: float, low: float | None, high: float | None) -> str:
    """`1.50x [1.46-1.54]`; three digits where two would hide on which side of 1 an end is."""
    return f"{value:.{decimals(low, high)}f}x{interval(low, high)}"


def ratios(values: Sequence[float], low: float | None, high: float | None) -> str:
    """`1.21x to 1.58x [1.15-1.66]`: of several sizes, with an interval that holds those of all."""
    digits = decimals(low, high)
    ends = [f"{value:.{digits}f}x" for value in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends)) + interval(low, high)


def decimals(low: float | None, high: float | None) -> int:
    """Return how many digits behind the point a ratio with such an interval takes."""
    return 3 if any(end is not None and abs(end - 1) < _CLOSE for end in (low, high)) else 2


def sizes(sizes_bytes: Sequence[int]) -> str:
    """`at 1 KiB`, `from 4 KiB to 32 KiB`."""
    first, last = min(sizes_bytes), max(sizes_bytes)
    return f"at {format_size(first)}" if first == last else f"from {format_size(first)} to {format_size(last)}"


def command(meta: Mapping[str, Any], name: str, *added: str) -> str:
    """Return the run's own command line as `commbench NAME`, with keys added or in place of what they were.

    "" where run.json does not say it, or says what nobody can have typed.
    """
    typed = meta.get("command")
    if not isinstance(typed, list) or not all(isinstance(word, str) and word.isprintable() for word in typed):
        return ""
    keys = {word.partition("=")[0] for word in added}
    kept = [word for word in typed[2:] if word.partition("=")[0] not in keys]
    return shlex.join(["commbench", name, *kept, *added])


def resume(folder: str, *, retry: bool) -> str:
    """Return the command that goes on with a run."""
    return shlex.join(["commbench", "sweep", "--resume", folder, *(["--retry-failed"] if retry else [])])


def time_interval(time_us: float, low_us: float | None, high_us: float | None) -> str:
    """`20.1 us [19.8-20.5]`, all in one unit."""
    scale, unit = unit_of_us(time_us)
    if low_us is None or high_us is None:
        return f"{time_us / scale:.4g} {unit}"
    return f"{time_us / scale:.4g} {unit} [{low_us / scale:.4g}-{high_us / scale:.4g}]"


def ends(low: float, high: float) -> str:
    """`0.97x and 1.04x`."""
    digits = decimals(low, high)
    return f"{low:.{digits}f}x and {high:.{digits}f}x"
