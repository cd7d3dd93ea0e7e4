"""Binding, applied: the sweep works out the places of ranks on its own host, ranks elsewhere their own; each takes its
place before it loads a library that allocates, and reads back what became of it.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from commbench import transports, variables
from commbench.binding import affinity, policies
from commbench.binding.affinity import ActualBinding
from commbench.binding.policies import Placement
from commbench.errors import EnvironmentProblem
from commbench.launch.job import Job
from commbench.machine import gpus, sysfs
from commbench.machine.driver import bus_id
from commbench.machine.machine import Machine, PciDevice
from commbench.rank_info import RankInfo
from commbench.records import PlannedCase, Setup

_ELSEWHERE = "slurm"  # the launcher whose ranks are on other hosts than the sweep


@functools.cache
def _machine() -> Machine:
    return sysfs.read()


def here(setup: Setup, local_size: int, allowed: Collection[int]) -> list[Placement]:
    """Return the places of all `local_size` ranks of this host, which may use the CPUs `allowed`.

    Raises `CommbenchError`.
    """
    seen = _gpus(_machine(), setup, local_size)
    placed = policies.placements(
        _machine(),
        setup.binding,
        local_size,
        allowed=allowed,
        devices=[device for device, _ in seen],
        masks=policies.parse_masks(setup.cpu_masks) if setup.cpu_masks else (),
        memory=setup.binding_memory,
        allowed_memory=affinity.allowed_memory(),
    )
    if any(place.memory_nodes is not None for place in placed) and (refused := affinity.unsupported_memory_policy()):
        raise affinity.memory_problem(setup.binding, refused)
    if setup.binding not in ("pci", "worst"):
        return placed
    return [replace(place, gpu=uuid) for place, (_, uuid) in zip(placed, seen, strict=True)]


def _gpus(machine: Machine, setup: Setup, local_size: int) -> list[tuple[PciDevice | None, str]]:
    """Return for each local rank the GPU that it will use, and its UUID; (None, "") where it uses none."""
    none: tuple[PciDevice | None, str] = (None, "")
    if not transports.entry(setup.transport).gpus:
        return [none] * local_size
    visible = gpus.visible(variables.applied(os.environ, setup.env))
    by_bus_id = {gpu.pci_bus_id: gpu for gpu in machine.gpus}
    usable = [(by_bus_id.get(bus_id(where)), uuid) for uuid, where in visible]
    if len(usable) == 1:  # a launcher may show each rank its own alone
        return usable * local_size
    ranks = [setup.layout.local(rank) if setup.virtual_hosts else rank for rank in range(local_size)]
    return [usable[rank] if rank < len(usable) else none for rank in ranks]


def of_launch(setup: Setup, launcher: str) -> list[Placement]:
    """Return the places of a launch's ranks, by the parent that starts it; none where each rank does so itself."""
    if setup.binding == "none" or launcher == _ELSEWHERE or _on_hosts(setup, launcher):
        return []
    return here(setup, setup.layout.ranks, os.sched_getaffinity(0))


def _on_hosts(setup: Setup, launcher: str) -> bool:
    """Return whether masks say that mpiexec spreads the ranks over several hosts: one for each rank of a node."""
    masks = setup.cpu_masks.count(";") + 1
    return launcher == "mpiexec" and setup.binding == "explicit" and masks == setup.layout.ranks_per_node


def check(
    planned: Sequence[PlannedCase], launchers: Mapping[str, str], note: Callable[[str], None], *, joined: int = 0
) -> list[PlannedCase]:
    """Return the plan, with a reason to skip the cases of policies that this machine or container cannot do.

    Raises that reason where no case is left, and for masks that cannot be meant. `joined` is the number of ranks on
    this host if somebody else has started them.
    """
    problems: dict[str, EnvironmentProblem] = {}
    setups = {item.case.setup.key: item.case.setup for item in planned if not item.skip}
    bound = {key: setup for key, setup in setups.items() if setup.binding != "none"}
    for key, setup in bound.items():
        launcher = launchers[setup.transport]
        if setup.binding == "explicit":
            ranks = {setup.layout.ranks_per_node, *([] if launcher == _ELSEWHERE else [setup.layout.ranks])}
            masks = policies.parse_masks(setup.cpu_masks)
            if joined or len(masks) not in ranks:
                policies.check_masks(masks, joined or max(ranks))
        try:
            if joined:
                here(setup, joined, affinity.limit())
            else:
                of_launch(setup, launcher)
        except EnvironmentProblem as problem:
            problems[key] = problem
    if problems and len(problems) == len(setups):
        raise next(iter(problems.values()))
    local = [setup.binding for key, setup in bound.items() if joined or launchers[setup.transport] != _ELSEWHERE]
    if len(_machine().nodes) == 1 and (alike := [name for name in policies.BY_NODE if name in local]):
        one = f"binding={alike[0]} gives" if len(alike) == 1 else f"bindings {', '.join(alike)} all give"
        note(f"one NUMA node: nothing to gain here: {one} every rank the same CPUs")
    reasons = {key: f"{problem}; {problem.hint}" for key, problem in problems.items()}
    return [replace(item, skip=item.skip or reasons.get(item.case.setup.key, "")) for item in planned]


def describe(setup: Setup, launcher: str) -> list[str]:
    """Say for a dry run where each rank would be, and why."""
    if setup.binding == "none":
        return ["binding=none: every rank as it is started"]
    placed = of_launch(setup, launcher)
    if not placed:
        return [f"{setup.binding_text}: each rank works out its place on the host that it is on"]
    return [f"{setup.binding_text}, local rank {rank}: {place}" for rank, place in enumerate(placed)]


@dataclass(frozen=True, slots=True)
class RankPlacement:
    """Knows what this rank was given, and whether it still has it."""

    policy: str
    placement: Placement | None  # None: as it was started
    strangers: bool  # whether the transport's own threads may be elsewhere

    def check(self, when: str) -> ActualBinding:
        """Return what is now. Raises `EnvironmentProblem` where that is not what was asked."""
        actual = affinity.read()
        if self.placement is not None:
            affinity.check(self.policy, self.placement, actual, when, strangers=self.strangers)
        return actual

    def check_gpu(self, identity: Mapping[str, Any]) -> None:
        """Raise `EnvironmentProblem` where the rank has another GPU than the one beside which it was placed."""
        wanted, uuid = self.placement.gpu if self.placement else "", str(identity.get("uuid", ""))
        if wanted and uuid and wanted != uuid:
            raise EnvironmentProblem(
                f"binding={self.policy} was chosen for the rank's GPU {wanted}, but CUDA gave it {uuid}",
                hint="let CUDA count GPUs as the driver does: env.CUDA_DEVICE_ORDER=PCI_BUS_ID",
            )

    def describe(self, actual: ActualBinding) -> dict[str, Any]:
        asked = None
        if self.placement is not None:
            asked = {
                "cpus": list(self.placement.cpus),
                "memory_nodes": None if self.placement.memory_nodes is None else list(self.placement.memory_nodes),
                "why": self.placement.why,
            }
        return {"policy": self.policy, "asked": asked, "found": actual.describe()}


def take(job: Job, info: RankInfo) -> RankPlacement:
    """Put this rank where it shall be, before it loads what allocates; its threads and children will inherit."""
    setup = job.setup
    placement = _mine(job, info)
    if placement is not None:
        affinity.apply(setup.binding, placement)
    return RankPlacement(setup.binding, placement, strangers=transports.entry(setup.transport).gpus)


def _mine(job: Job, info: RankInfo) -> Placement | None:
    if job.setup.binding == "none":
        return None
    if job.host == platform.node() and len(job.placements) == info.local_size:
        return job.placements[info.local_rank]
    # Not the affinity that it was started with: a launcher that has pinned it shall be noticed, not obeyed.
    return here(job.setup, info.local_size, affinity.limit())[info.local_rank]
