"""Whether a sweep over bindings could find anything: ranks of one NUMA node have nowhere else to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from commbench.binding.policies import BY_NODE
from commbench.records import Fabric, Row

_SAME_ON_ONE_NODE = ("none", *BY_NODE)  # not explicit, which says what CPUs ranks share
_OTHER_HOSTS = "slurm"  # the launcher whose ranks may be on other hosts than the one that began the run


def one_node(compared: Sequence[Row], meta: Mapping[str, Any]) -> str:
    """Return that bindings which were compared cannot differ; "" where they can, or where nobody knows.

    compared: rows with their baselines. meta: run.json, with `numa_nodes` of the host that began the run.
    """
    rows = [row for row in compared if row.binding in _SAME_ON_ONE_NODE]
    names = [name for name in _SAME_ON_ONE_NODE if any(row.binding == name for row in rows)]
    if meta.get("numa_nodes") != 1 or len(names) < 2 or any(_elsewhere(row, meta) for row in rows):
        return ""
    if len({row.rank_cpus for row in rows if row.ranks == rows[0].ranks}) > 1:
        return ""  # a launcher has given ranks that are not bound less than the node
    return f"one NUMA node: nothing to gain here, as bindings {', '.join(names)} give every rank the same CPUs"


def only_by_node(compared: Sequence[Row]) -> bool:
    """Return whether nothing but such bindings was compared."""
    return all(row.binding in _SAME_ON_ONE_NODE for row in compared)


def _elsewhere(row: Row, meta: Mapping[str, Any]) -> bool:
    """Return whether ranks may be on hosts that nobody has looked at."""
    launcher = (meta.get("launchers") or {}).get(row.transport)
    return row.fabric == Fabric.REAL or (launcher == _OTHER_HOSTS and not meta.get("joined"))
