"""CallTable: collectives of groups of ranks as they were measured, which take the place of what links' costs make."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commbench.errors import UsageError
from commbench.stats import Floats
from commbench.strategy import calls
from commbench.strategy.calls import ALL_TO_ALL, BROADCASTS, COLLECTIVES, Calls, PeerGroups
from commbench.strategy.tagged import Tagged

# 95 % of calls in a training are within these factors of the same calls alone: of a group that was measured, and of
# one that is as far off as its nearest. docs/reference/planner.md
_MEASURED, _NEAREST = Tagged(1.0, "measured", 1.3), Tagged(1.0, "measured", 1.5)
_HINT = "lines of commbench sweep calls --format json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredGroup:
    """One collective of groups of `size` ranks, `per_node` of them on a node. sizes: bytes, ascending; times: us."""

    kind: int
    size: int
    per_node: int
    sizes: Floats
    times: Floats

    def us(self, nbytes: Floats) -> Floats:
        """Return microseconds, [n]: between two sizes by logarithms, below the least as that, and above the largest
        in proportion to bytes."""
        found = np.exp(np.interp(np.log(nbytes), np.log(self.sizes), np.log(self.times)))
        return np.asarray(found * np.maximum(nbytes / self.sizes[-1], 1.0))

    def calls(self, nbytes: Floats) -> Calls:
        """Return the same as calls, of which links' costs know what they take."""
        of = PeerGroups(size=np.full(len(nbytes), self.size), per_node=np.full(len(nbytes), self.per_node))
        if self.kind in (ALL_TO_ALL, BROADCASTS):
            return (calls.all_to_all if self.kind == ALL_TO_ALL else calls.trees)(of, nbytes)
        return calls.ring(of, nbytes, 2.0 if self.kind == calls.ALL_REDUCE else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTable:
    """What was measured. seed: of what it is off by."""

    groups: tuple[MeasuredGroup, ...]
    seed: int = 0

    def nearest(self, kind: int, size: int, per_node: int) -> MeasuredGroup | None:
        """Return the measured group that is most like this one, itself where it was; None where none is: of the same
        collective, and on one node or on several as this one."""
        alike = [one for one in self.groups if one.kind == kind and (one.size > one.per_node) == (size > per_node)]
        return min(alike, default=None, key=lambda one: (
            abs(math.log(one.size / size)) + abs(math.log(one.per_node / per_node)), one.size))  # fmt: skip

    def drawn(self, kind: int, size: int, per_node: int, draws: int) -> Floats:
        """Return what calls of a group are off by, [d], 1 in the middle."""
        known = any((one.kind, one.size, one.per_node) == (kind, size, per_node) for one in self.groups)
        normal = np.random.default_rng([self.seed, 2, kind, size, per_node]).standard_normal(draws)
        normal[0] = 0.0
        return (_MEASURED if known else _NEAREST).drawn(normal)


def read_calls(path: Path, seed: int = 0) -> CallTable:
    """Read the rows of a sweep, one JSON object a line; of each size the fastest of its algorithms. Raises
    `UsageError`."""
    try:
        rows: list[Any] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"calls={path}: {error}", hint=_HINT) from error
    found: dict[tuple[int, int, int], dict[float, float]] = {}
    for row in rows:
        if not isinstance(row, dict) or row.get("collective") not in COLLECTIVES or row.get("status") != "ok":
            continue
        ranks, nodes, size = (int(_number(path, row, name)) for name in ("ranks", "nodes", "group_size"))
        per_node = _per_node(str(row.get("groups")), size, ranks // nodes)
        if size < 2 or not per_node or size % per_node:
            continue
        kind = COLLECTIVES[row["collective"]]
        times = found.setdefault((kind, size, per_node), {})
        # Each rank's part after the other's: so many broadcasts.
        often = size if kind == BROADCASTS else 1
        nbytes, us = often * _number(path, row, "size_bytes"), often * _number(path, row, "time_us")
        times[nbytes] = min(us, times.get(nbytes, math.inf))
    if not found:
        raise UsageError(f"calls={path} has no {', '.join(COLLECTIVES)} that was measured", hint=_HINT)
    groups = [
        MeasuredGroup(kind=kind, size=size, per_node=per_node, sizes=np.array(sorted(times)),
                      times=np.array([times[one] for one in sorted(times)]))
        for (kind, size, per_node), times in sorted(found.items())
    ]  # fmt: skip
    return CallTable(groups=tuple(groups), seed=seed)


def _per_node(groups: str, size: int, of_node: int) -> int:
    """Return how many ranks of a group are on a node; 0 where that is not the same for all."""
    if groups == "rails":
        return 1
    if not groups.startswith("ranks:"):
        return min(size, of_node)
    counts = {
        count
        for group in groups.removeprefix("ranks:").split(";")
        for count in Counter(int(rank) // of_node for rank in group.split(",") if rank.strip().isdigit()).values()
    }
    return counts.pop() if len(counts) == 1 else 0


def _number(path: Path, row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"calls={path}: {name} is {value!r} in {json.dumps(dict(row))[:60]}", hint=_HINT)
    return float(value)
