"""Routing on InfiniBand and RoCE: what decides which route packets take, and what the ports' counters say of it.

An application chooses how it sends (NCCL_IB_ADAPTIVE_ROUTING: data, then a separate notice, since adaptively routed
packets may overtake each other), the service level, and the number of queue pairs. Whether switches route adaptively is
decided by the subnet manager for some service levels. So results say `NCCL AR mode`, and never that adaptive routing
was on, unless packets came out of order, which one path alone does not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# What each is; the defaults are those of NCCL 2.28.
VARIABLES = {
    "NCCL_IB_ADAPTIVE_ROUTING": "1: send so that packets may overtake each other; default on InfiniBand, 0 on RoCE",
    "NCCL_IB_AR_THRESHOLD": "bytes from which that is done; 8192",
    "NCCL_IB_SL": "service level, for some of which switches may route adaptively; 0",
    "NCCL_IB_TC": "traffic class on RoCE; 0",
    "NCCL_IB_QPS_PER_CONNECTION": "queue pairs of a connection, which may take different ways; 1",
    "NCCL_IB_SPLIT_DATA_ON_QPS": "1: each message over all of them; 0: in turn",
    "UCX_IB_SL": "service level of MPI over UCX",
    "UCX_IB_NUM_PATHS": "paths of a connection of MPI over UCX",
}
INFINIBAND = Path("/sys/class/infiniband")
_EVIDENCE = "out_of_sequence"  # packets that came before one sent earlier

Counters = dict[str, dict[str, int]]  # by port (mlx5_0/1), by name


def ports(root: Path = INFINIBAND) -> Counters:
    """Return all counters of all InfiniBand and RoCE ports of this host. What cannot be read is left out."""
    by_port: Counters = {}
    for folder in sorted(root.glob("*/ports/*")):
        counters = {}
        for path in sorted([*folder.glob("counters/*"), *folder.glob("hw_counters/*")]):
            try:
                counters[path.name] = int(path.read_text())
            except (OSError, ValueError):
                continue
        if counters:
            by_port[f"{folder.parent.parent.name}/{folder.name}"] = counters
    return by_port


def growth(before: Counters, after: Counters) -> Counters:
    """Return what has changed, of counters that are in both. A counter that was reset shows as negative."""
    changed: Counters = {}
    for port, counters in after.items():
        old = before.get(port, {})
        grown = {name: value - old[name] for name, value in counters.items() if name in old and value != old[name]}
        if grown:
            changed[port] = grown
    return changed


def out_of_order(changed: Counters) -> int:
    """Return how many packets came before one that was sent earlier."""
    return sum(counters.get(_EVIDENCE, 0) for counters in changed.values())


def evidence(changed: Counters) -> str:
    """Return what counters say of the routes that packets took, in words; "" where nothing was counted."""
    if not changed:
        return ""
    late = out_of_order(changed)
    if late > 0:
        return f"{late} packets came out of order: they took several ways"
    return "no packet came out of order: nothing says that packets took several ways"


def asked(env: Mapping[str, str]) -> bool:
    """Return whether a launch is about routing."""
    return any(name in VARIABLES for name in env)


def mode(env: Mapping[str, str]) -> str:
    """Return `NCCL AR mode 1` where that was asked; "" otherwise."""
    value = env.get("NCCL_IB_ADAPTIVE_ROUTING")
    return f"NCCL AR mode {value}" if value is not None else ""
