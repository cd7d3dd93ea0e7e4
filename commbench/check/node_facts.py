"""What each host of a check says of itself: what doctor finds, what it is made of, and who else uses its CPUs.

The first rank of each host asks, in every launch, before any rank is bound or connected; the others wait for it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commbench.doctor import Check, Finding, examine
from commbench.doctor.finding import CheckStatus
from commbench.doctor.load import CpuLoad, look, much
from commbench.doctor.system import System
from commbench.errors import CorruptFile, UsageError
from commbench.files import write_atomically
from commbench.launch.job import Job
from commbench.layout import Layout
from commbench.machine import describe, foreign, metadata, sysfs
from commbench.rank_info import RankInfo
from commbench.run_folder import RunFolder
from commbench.serialise import check_types, parse_json

MODULE = __name__  # what a `Job` names
# What doctor finds of a host and not of the command that was typed there; load is looked at by itself, and often.
_SECTIONS = ("GPUs", "network", "CPUs", "memory")
_ELSEWHERE = ("load",)
_LOOKS = 3  # in a launch that is the only one
_WINDOW_S = 0.25
_WAIT_S, _PAUSE_S = 60.0, 0.02
_TYPES: dict[str, Any] = {"rank": int, "host": str, "looks": list[dict[str, Any]]}
_FACTS: dict[str, Any] = {"doctor": list[dict[str, Any]], "machine": dict[str, Any], "metadata": dict[str, Any]}


@dataclass(slots=True, kw_only=True)
class HostFacts:
    """One host, as its first rank saw it in all launches. looks: other load, CPUs, a number a look."""

    host: str
    first_rank: int
    nodes: list[int] = field(default_factory=list)  # of the layout
    doctor: list[dict[str, Any]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    looks: list[dict[str, Any]] = field(default_factory=list)


def run(job: Job, info: RankInfo) -> None:
    """Write what this host says, as its first rank; wait for that as any other."""
    path = job.folder / f"host-{info.rank - info.local_rank}.json"
    if info.local_rank:
        _wait(path)
        return
    system = System()
    looks = [_look(system, job.parent_pid) for _ in range(_LOOKS if job.attempt == "joined" else 1)]
    facts = collect(system) if job.launch == 0 else {}
    write_atomically(path, json.dumps({"rank": info.rank, "host": system.host, "looks": looks, **facts}))


def _wait(path: Path) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)


def _look(system: System, parent: int) -> dict[str, Any]:
    try:
        found: CpuLoad = look(system, parent=parent, window_s=_WINDOW_S)
    except (OSError, ValueError, IndexError):  # no Linux, or a /proc of another kind
        return {}
    # Of processes that came and went meanwhile nobody knows whether ranks would have waited for them.
    others = sum(one.cpus for one in found.busiest)
    return dataclasses.asdict(found) | {"others": others, "much": much(others, found.cpus)}


def collect(system: System) -> dict[str, Any]:
    """Return what doctor finds of this host, and what it is made of."""
    found = [_finding(check, one) for check, one in examine(system, _SECTIONS, without=_ELSEWHERE)]
    return {"doctor": found, "machine": describe.dictionary(sysfs.read()),
            "metadata": metadata.collect() | gpu_facts(system)}  # fmt: skip


def gpu_facts(system: System) -> dict[str, Any]:
    """Return what of its GPUs a node shall have as the others have it."""
    listed = system.gpus
    return {
        "driver": listed.driver or None,
        "gpu_max_clock_mhz": min((gpu.max_clock_mhz for gpu in listed.gpus if gpu.max_clock_mhz), default=None),
        "gpu_power_limit_w": min((gpu.power_limit_w for gpu in listed.gpus if gpu.power_limit_w), default=None),
    }


def _finding(check: Check, found: Finding) -> dict[str, Any]:
    return {"section": check.section, "name": check.name, **dataclasses.asdict(found)}


def bad(finding: Mapping[str, Any]) -> bool:
    return finding.get("status") in (CheckStatus.WARN, CheckStatus.FAIL)


def read(folder: RunFolder, layout: Layout) -> list[HostFacts]:
    """Return the hosts of a run, in the order of their first ranks. Raises `CorruptFile`."""
    hosts: dict[int, HostFacts] = {}
    for path in sorted((folder.path / "logs").glob("*/host-*.json")):
        try:
            line = parse_json(path.read_bytes())
            check_types(line, _TYPES, _FACTS)
        except (OSError, ValueError) as error:
            raise CorruptFile(f"{path}: {error}", hint="the run folder is damaged: start a new check") from error
        one = hosts.setdefault(line["rank"], HostFacts(host=line["host"], first_rank=line["rank"]))
        one.looks += [item for item in line["looks"] if item]
        if "machine" in line:
            one.doctor, one.machine, one.metadata = line["doctor"], line["machine"], line["metadata"]
    found = [hosts[rank] for rank in sorted(hosts)]
    ends = [one.first_rank for one in found[1:]] + [layout.ranks]
    for one, end in zip(found, ends, strict=True):
        one.nodes = sorted({layout.node(rank) for rank in range(one.first_rank, end)})
    return found


def recorded(words: Sequence[str], nodes: int) -> dict[int, dict[str, Any]]:
    """Return machines that stand for nodes, as `commbench topo --format json` has them.

    words: `node2=DIR`, and `DIR` for all nodes that have none of their own. Raises `UsageError`.
    """
    machines: dict[int, dict[str, Any]] = {}
    rest: dict[str, Any] | None = None
    for word in words:
        name, equals, path = word.partition("=")
        machine = _read_machine(Path(path if equals else word))
        if not equals:
            rest = machine
            continue
        number = name.removeprefix("node")
        if not number.isdecimal() or int(number) >= nodes:
            raise UsageError(f"--machine {word}: {name!r} is no node",
                             hint=f"node0=DIR to node{nodes - 1}=DIR, or DIR for all nodes")  # fmt: skip
        machines[int(number)] = machine
    if rest is not None:
        machines = dict.fromkeys(range(nodes), rest) | machines
    return machines


def _read_machine(path: Path) -> dict[str, Any]:
    return describe.dictionary(foreign.read(path) if path.is_file() else sysfs.read(path))
