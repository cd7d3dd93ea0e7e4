"""What a launch found: read back from the kernel, the driver and the loaded libraries, not from what was asked."""

from __future__ import annotations

import json
import math
import os
import platform
import zlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from commbench import fabric
from commbench.binding.affinity import ActualBinding
from commbench.errors import EnvironmentProblem
from commbench.files import write_atomically
from commbench.launch.job import Job
from commbench.launch.placement import RankPlacement
from commbench.layout import LINK_CLASSES, LinkClass
from commbench.links import LinkRate
from commbench.machine import cpulist, link_rates, metadata
from commbench.processes import cleanup
from commbench.rank_info import RankInfo
from commbench.records import Fabric
from commbench.transports.base import Transport

_ASKED = ("gloo", "mpi", "nccl")  # whose links the machine knows
_WORD = 32  # bits that a float holds for certain


def describe_rank(
    job: Job, info: RankInfo, versions: Mapping[str, str], device: Mapping[str, Any], **more: Any
) -> None:
    """Write rank-N.json: what this rank really has, read back from the kernel and the libraries, not from the request.

    `versions` of the libraries that it has loaded, `device` that it uses (empty: the host), and what `more` is known.
    """
    description = {
        "rank": info.rank,
        "size": info.size,
        "local_rank": info.local_rank,
        "host": platform.node(),
        "pid": os.getpid(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "launcher": info.launcher,
        "shared_memory": cleanup.mapped(),
        "versions": dict(versions),
        "device": dict(device),
        "environment": {name: os.environ.get(name) for name in job.setup.env},
        **more,
    }
    write_atomically(job.folder / f"rank-{info.rank}.json", json.dumps(description))


def fabric_of(job: Job, transport: Transport) -> Fabric:
    """Compare the layout with where the ranks really are. Raises if ranks of one node are on several hosts."""
    layout, emulated = job.setup.layout, job.setup.emulated is not None
    host = fabric.identity() if emulated else zlib.crc32(platform.node().encode())
    if job.setup.emulated is not None and job.setup.emulated.rails:
        host = layout.node(transport.rank)  # whose ranks have networks of their own
    seen = transport.all_gather([float(host), float(zlib.crc32(metadata.machine_id().encode()))])
    hosts, machines = seen[:, 0].tolist(), len({*seen[:, 1]})
    between = Fabric.between(layout.nodes, machines, emulated=emulated, virtual=job.setup.virtual_hosts)
    if layout.nodes == 1 or len(set(hosts)) == 1:
        mixed = len(set(hosts)) > 1 or emulated
    else:
        groups = [{hosts[rank] for rank in group} for group in layout.node_groups()]
        mixed = any(len(group) > 1 for group in groups) or len(set.union(*groups)) < layout.nodes
    if mixed:
        raise RuntimeError(
            f"layout {layout} puts consecutive ranks on a node, but ranks 0 .. {layout.ranks - 1} are on "
            f"{len(set(hosts))} hosts in another order: start ranks node by node (block distribution)"
        )
    return between


def links_of(job: Job, transport: Transport, between: Fabric) -> dict[str, LinkRate] | None:
    """Return the rates of links that are known without the user: collective. None where there is none.

    Those of an emulated network are as it was asked for; what the transport has measured comes before what the
    machines say, of which the slowest counts.
    """
    if job.setup.emulated:
        return fabric.links(job.setup.emulated)
    known = {str(link): rate for link, rate in transport.links().items()}
    layout = job.setup.layout
    wanted: list[LinkClass] = ["inter"] if between is Fabric.REAL and transport.name in _ASKED else []
    if transport.name == "nccl" and "intra" not in known and between is not Fabric.VIRTUAL:
        wanted.append("intra")
    if transport.name == "nccl":
        wanted.append("host")
    if not wanted:
        return known or None
    said = link_rates.here(transport.name, layout.ranks_per_node) if layout.local(transport.rank) == 0 else {}
    classes: tuple[LinkClass, ...] = (*LINK_CLASSES, "host")
    every = transport.all_gather([said[link].gbps if link in said else 0.0 for link in classes])
    for link, slowest in zip(classes, every[:: layout.ranks_per_node].min(axis=0), strict=True):
        if link in wanted and link in said and slowest > 0:  # rank 0 writes the measurement, and has asked
            known[link] = replace(said[link], gbps=float(slowest))
    return known or None


def places(transport: Transport, mine: ActualBinding) -> tuple[list[str], list[str]]:
    """The CPUs of every rank, and the NUMA nodes to which its memory is bound; one list where all are alike."""
    memory = mine.memory_nodes if mine.memory == "bind" else ()
    return _gather_sets(transport, mine.cpus), _gather_sets(transport, memory)


def _gather_sets(transport: Transport, mine: Collection[int]) -> list[str]:
    """Lists of numbers, by rank. Ranks exchange floats, so they go as words of bits."""
    words = int(transport.all_gather([float(max(mine, default=0) // _WORD + 1)]).max())
    bits = [float(sum(1 << number % _WORD for number in mine if number // _WORD == word)) for word in range(words)]
    sets = [
        [word * _WORD + bit for word, value in enumerate(row) for bit in range(_WORD) if int(value) >> bit & 1]
        for row in transport.all_gather(bits)
    ]
    texts = [cpulist.text(numbers) or "-" for numbers in sets]
    return texts[:1] if len(set(texts)) == 1 else texts


def check_places(transport: Transport, rank_placement: RankPlacement) -> None:
    """Raises on all ranks if one of them is not any more where it was put: what was measured meanwhile is void."""
    if rank_placement.placement is None:
        return
    problem: EnvironmentProblem | None = None
    try:
        rank_placement.check("after a case")
    except EnvironmentProblem as error:
        problem = error
    moved = [str(rank) for rank, row in enumerate(transport.all_gather([float(problem is not None)])) if row[0]]
    if problem is not None:
        raise problem
    if moved:
        raise EnvironmentProblem(
            f"binding={rank_placement.policy} did not stay in effect on rank {', '.join(moved)}",
            hint="its log says what it is",
        )


def clock(transport: Transport) -> dict[str, Any]:
    """How fast the slowest rank's device runs right after the timed calls, and whether something held one back."""
    condition = transport.device.condition()
    if not transport.all_gather([float(bool(condition))]).all():
        return {}
    clocks = transport.all_gather([condition.get("clock_mhz") or math.nan, float(bool(condition.get("slowed_by")))])
    slowest = float(clocks[:, 0].min())
    return {
        "clock_mhz": None if math.isnan(slowest) else slowest,
        "slowed_ranks": [rank for rank, row in enumerate(clocks) if row[1]],
    }
