"""What a launch found: read back from the kernel, the driver and the loaded libraries, not from what was asked."""

from __future__ import annotations

import json
import math
import os
import platform
import zlib
from typing import Any

from commbench import fabric
from commbench.launch import leftovers
from commbench.launch.environment import RankInfo
from commbench.launch.order import Order
from commbench.records import Fabric
from commbench.store import write_atomically
from commbench.transports.base import Transport


def describe_rank(order: Order, transport: Transport, info: RankInfo, condition: dict[str, Any]) -> None:
    """What really happened, per rank: read back from the kernel and the loaded libraries, not from the request.

    `condition` of the device, before and after the cases.
    """
    description = {
        "rank": info.rank,
        "size": info.size,
        "local_rank": info.local_rank,
        "host": platform.node(),
        "pid": os.getpid(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "launcher": info.launcher,
        "shared_memory": leftovers.mapped(),
        "versions": transport.versions(),
        "device": {**transport.device.identity(), **condition},
    }
    write_atomically(order.folder / f"rank-{info.rank}.json", json.dumps(description))


def fabric_of(order: Order, transport: Transport) -> Fabric:
    """Compare the layout with the hosts that the ranks really are on. Raises if ranks of one node are on several."""
    layout = order.outer.layout
    host = fabric.identity() if order.outer.emulated else zlib.crc32(platform.node().encode())
    hosts = [row[0] for row in transport.all_gather([float(host)])]
    if layout.nodes == 1 or len(set(hosts)) == 1:
        found = Fabric.NONE if layout.nodes == 1 else Fabric.DECLARED
        if order.outer.virtual_hosts:
            found = Fabric.VIRTUAL
        mixed = len(set(hosts)) > 1 or order.outer.emulated is not None
    else:
        found = Fabric.EMULATED if order.outer.emulated else Fabric.REAL
        groups = [{hosts[rank] for rank in group} for group in layout.node_groups()]
        mixed = any(len(group) > 1 for group in groups) or len(set.union(*groups)) < layout.nodes
    if mixed:
        raise RuntimeError(
            f"layout {layout} puts consecutive ranks on a node, but ranks 0 .. {layout.ranks - 1} are on "
            f"{len(set(hosts))} hosts in another order: start ranks node by node (block distribution)"
        )
    return found


def clock(transport: Transport) -> dict[str, Any]:
    """How fast the slowest rank's device runs right after the timed calls, and whether something held one back."""
    found = transport.device.condition()
    if not transport.all_gather([float(bool(found))]).all():
        return {}
    clocks = transport.all_gather([found.get("clock_mhz") or math.nan, float(bool(found.get("slowed_by")))])
    slowest = float(clocks[:, 0].min())
    return {
        "clock_mhz": None if math.isnan(slowest) else slowest,
        "slowed_ranks": [rank for rank, row in enumerate(clocks) if row[1]],
    }
