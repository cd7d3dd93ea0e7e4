"""How near to what is possible: the bound beside a bandwidth, in words."""

from __future__ import annotations

from collections.abc import Sequence

from commbench.records import Row, Status
from commbench.units import format_size

_MEASURED_ABOVE = 1.02  # of the bound: times and rates are as rounded as their sources give them
REDUCING = "all_reduce: switches that reduce, NVLS or SHARP, allow up to twice as much"


def of_bound(gbps: float, bound_gbps: float, kind: str) -> str:
    """Return `41 GB/s of 57 possible (72 %, nominal)`."""
    label = f", {kind}" if kind else ""
    return f"{gbps:.3g} GB/s of {bound_gbps:.3g} possible ({100 * gbps / bound_gbps:.3g} %{label})"


def above(fraction: float, collective: str = "") -> str:
    """Return what has to be said of a bandwidth above its bound; "" of one that is possible."""
    if fraction <= _MEASURED_ABOVE:
        return ""
    text = f"{100 * fraction:.3g} % of the bound, above what the link rate allows: is link_rate right?"
    return f"{text} ({REDUCING})" if collective == "all_reduce" else text


def sentence(rows: Sequence[Row]) -> str:
    """Return how near to its bound the best of these rows, of one set-up, comes at the largest size; "" without one."""
    known = [row for row in rows if row.status is Status.OK and row.busbw_gbps and row.bound_gbps]
    if not known:
        return ""
    largest = max(row.size_bytes for row in known)
    best = max((row for row in known if row.size_bytes == largest), key=lambda row: row.bound_fraction or 0.0)
    reached = of_bound(best.busbw_gbps or 0.0, best.bound_gbps or 1.0, best.bound_kind)
    return f"{best.label} reaches {reached} at {format_size(largest)}"


def warning(rows: Sequence[Row]) -> str:
    """Return the worst row above its bound, in words; "" where all are possible."""
    bounded = [row for row in rows if row.status is Status.OK and row.bound_fraction]
    worst = max(bounded, key=lambda row: row.bound_fraction or 0.0, default=None)
    if worst is None or not (text := above(worst.bound_fraction or 0.0, worst.collective)):
        return ""
    return f"{worst.label} at {format_size(worst.size_bytes)} shows {text}"
