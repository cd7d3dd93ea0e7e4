"""Whether ranks were switched out while they were timed, and by whom: what stands in the way of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from commbench.output.describe import usable_cpus
from commbench.records import Fabric, Row, Status

MANY = 0.05  # of the samples: so many preempted ones are said
_OWN_LOAD = 0.5  # so much above a load of one for each rank is still theirs
BUSY_PERCENT = 90  # from there on an emulated fabric is about the CPUs


def preemption(rows: Sequence[Row], meta: Mapping[str, Any]) -> str:
    """Return how many samples were preempted, and by whom; "" where they were few, or nobody counted."""
    # On an emulated network ranks wait for links most of the time, and a switch costs nothing, unless CPUs are busy.
    known = [row for row in rows if row.status is Status.OK and row.preempted is not None and not _links_decide(row)]
    if (share := _share(known)) < MANY:
        return ""
    cpus, ranks = usable_cpus(meta), max(row.ranks for row in known)
    load = max(row.load_average or 0.0 for row in known)
    fitting = [row for row in known if not 0 < cpus < row.ranks]
    if _share(fitting) < MANY:
        whose = f"{ranks} ranks share {cpus} CPUs"
    elif load > max(row.ranks for row in fitting) + _OWN_LOAD:
        whose = "other programs use these CPUs"
    else:  # the load is the ranks' own: a library's threads beside them, or the system
        whose = "threads of the library or the system took their CPUs"
    return f"{100 * share:.0f} % of samples were preempted: {whose}, load {load:.1f}"


def _links_decide(row: Row) -> bool:
    return row.fabric == Fabric.EMULATED and (row.cpu_percent or 0.0) <= BUSY_PERCENT


def _share(rows: Sequence[Row]) -> float:
    return sum(row.preempted or 0 for row in rows) / max(1, sum(row.samples for row in rows))
