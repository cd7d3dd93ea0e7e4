"""Whether routing on InfiniBand or RoCE really differed between two arms: without evidence there is no verdict.

Variables say what was asked of NCCL. What became of it is seen in what NCCL says that it has read, among it the service
level, and in the counters of ports: packets that came out of order took several ways.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from commbench.machine import infiniband
from commbench.run_folder import RunFolder


class Seen(NamedTuple):
    """What the launches of one arm show: whether a port was there, what NCCL said, whether packets came late."""

    ports: bool
    told: frozenset[tuple[str, str]]
    late: bool


def of_arm(folder: RunFolder, attempts: Collection[str]) -> Seen:
    """Read what rank 0 of each of these launches has written down."""
    ports, late = False, False
    told: set[tuple[str, str]] = set()
    for attempt in attempts:
        rank = _rank_0(folder, attempt)
        counted: infiniband.Counters = rank.get("ports") or {}
        ports |= bool(counted)
        late |= infiniband.out_of_order(counted) > 0
        said = rank.get("told") or {}
        told |= {(name, str(value)) for name, value in said.items() if name in infiniband.VARIABLES}
    return Seen(ports, frozenset(told), late)


def same(one: Seen, other: Seen) -> bool:
    """Return whether nothing shows that two arms were routed otherwise."""
    return not (one.ports and other.ports) or (one.told, one.late) == (other.told, other.late)


def _rank_0(folder: RunFolder, attempt: str) -> Mapping[str, Any]:
    try:
        found = json.loads((folder.path / "logs" / attempt / "rank-0.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
