"""Calibration: what a run must have measured for its costs to hold elsewhere, and what of it is missing.

`commbench sweep calibration` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence

from commbench.records import Case

RANK_COUNTS = 3
_WAYS = 3  # of moving the same bytes, in one step and in several
_SIZES = 3


def missing(cases: Sequence[Case]) -> tuple[str, ...]:
    """Return what the cases of one setting lack, in words; nothing where they are a calibration."""
    counts = sorted({case.setup.layout.ranks for case in cases})
    ways = {case.label for case in cases if case.collective != "pairs"}
    sizes = {case.size_bytes for case in cases if case.collective != "pairs"}
    found = []
    if len(counts) < RANK_COUNTS:
        found.append(f"{RANK_COUNTS} numbers of ranks (measured: {', '.join(map(str, counts))})")
    shapes = {(case.setup.nodes, case.setup.ranks_per_node) for case in cases}
    if any(nodes > 1 for nodes, _ in shapes) and (len({n for n, _ in shapes}) < 2 or len({m for _, m in shapes}) < 2):
        found.append("several numbers of nodes, and of ranks on each")
    if len(ways) < _WAYS:
        found.append(f"algorithms of several steps (measured: {', '.join(sorted(ways)) or 'none'})")
    if len(sizes) < _SIZES:
        found.append(f"{_SIZES} sizes of an exchange")
    if not any(case.collective == "pairs" for case in cases):
        found.append("pairs: single messages")
    return tuple(found)
