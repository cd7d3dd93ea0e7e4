"""Binding: which CPUs and which memory each rank of a host shall have. Pure: from a machine and a policy to places.

`block` and `round_robin` are what Tutel does, `block` in `tutel/launcher/execl.py` (numactl --cpunodebind) and
`round_robin` in `init_affinity_at_program_beginning` of `tutel/system.py`; neither asks where the GPUs are.
docs/guide/binding.md has both formulas, and why they miss on Azure's NDv4.

Ranks that are sent to one NUMA node share all of its CPUs, as `numactl --cpunodebind` has it. To cut a node up would
compare few CPUs with many.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from commbench.errors import EnvironmentProblem, UsageError
from commbench.machine import cpulist, paths
from commbench.machine.machine import Machine, NumaNode, PciDevice

POLICIES = ("none", "pci", "block", "round_robin", "worst", "explicit")
_SWITCH: dict[bool | str, bool] = {True: True, "on": True, False: False, "off": False}  # YAML reads on and off so too
BY_NODE = ("pci", "block", "round_robin", "worst")  # one NUMA node leaves no difference between them


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Says where one rank shall be."""

    cpus: tuple[int, ...]
    memory_nodes: tuple[int, ...] | None  # that new memory comes from, and no other; None: the policy stays as it is
    why: str
    gpu: str = ""  # UUID of the GPU beside which the place is, where that is how it was chosen

    def __str__(self) -> str:
        memory = "memory as it was" if self.memory_nodes is None else f"memory of {_nodes_text(self.memory_nodes)}"
        return f"CPUs {cpulist.text(self.cpus)}, {memory}: {self.why}"


def parse_masks(text: str) -> list[tuple[int, ...]]:
    """Read `0-3;4-7`: a list of CPUs for each rank of a host. Raises `UsageError`."""
    try:
        return [cpulist.parse(part) for part in text.split(";")]
    except ValueError as error:
        raise UsageError(
            f"cpu_masks is {text!r}: {error}",
            hint="a list of CPUs for each rank of a host, with ; between them: cpu_masks='0-3;4-7'",
        ) from None


def masks_text(masks: Sequence[Collection[int]]) -> str:
    """Return what `parse_masks` reads, always spelt alike."""
    return ";".join(map(cpulist.text, masks))


def check_keys(policies: Sequence[str], masks: object) -> str:
    """Return the value of cpu_masks, "" without one, spelt as `masks_text` does. Raises `UsageError`."""
    text = "" if masks is None else masks_text(parse_masks(str(masks)))
    if "explicit" in policies and not text:
        raise UsageError(
            "binding=explicit needs cpu_masks", hint="a list of CPUs for each rank of a host: cpu_masks='0-3;4-7'"
        )
    return text


def memory_wanted(value: object) -> bool:
    """Return the value of binding_memory. Raises `UsageError`."""
    if not isinstance(value, bool | str) or value not in _SWITCH:
        raise UsageError(f"binding_memory is {value!r}", hint="on (or true), off (or false)")
    return _SWITCH[value]


def check_masks(masks: Sequence[Sequence[int]], ranks: int) -> None:
    """Raise `UsageError` unless there is one for each of the `ranks` ranks of a host."""
    if len(masks) != ranks:
        raise UsageError(
            f"cpu_masks={masks_text(masks)} has {len(masks)} list{'' if len(masks) == 1 else 's'} of CPUs, but "
            f"{ranks} rank{'' if ranks == 1 else 's'} run{'s' if ranks == 1 else ''} on this host",
            hint="one list for each rank of a host, with ; between them; none is used twice",
        )


def placements(
    machine: Machine,
    policy: str,
    local_size: int,
    *,
    allowed: Collection[int],
    devices: Sequence[PciDevice | None] = (),
    masks: Sequence[tuple[int, ...]] = (),
    memory: bool = True,
    allowed_memory: Collection[int] | None = None,
) -> list[Placement]:
    """Return the place of each of the `local_size` ranks of a host.

    `allowed` are the CPUs, and `allowed_memory` the NUMA nodes, that this process may use (None: all of them).
    `devices` are the ranks' GPUs, by local rank, None or left out where a rank has none. With `memory` ranks get the
    memory of their CPUs' nodes, without it their memory policy stays as it is.

    Raises `UsageError` for masks that cannot be meant, `EnvironmentProblem` for a rank without CPUs or memory.
    """
    here = _Here(machine, allowed, memory, allowed_memory)
    if policy == "none":
        return [Placement(cpus=here.cpus(allowed), memory_nodes=None, why="as it was started")] * local_size
    if policy == "explicit":
        check_masks(masks, local_size)
        return [here.by_mask(rank, mask) for rank, mask in enumerate(masks)]
    nodes = [node for node in machine.nodes if node.cpus]
    if not nodes:
        raise EnvironmentProblem(
            f"binding={policy} needs NUMA nodes, and this machine shows none",
            hint="use binding=explicit with cpu_masks, or binding=none; notes: " + ("; ".join(machine.notes) or "none"),
        )
    chosen = [_choose(machine, nodes, policy, rank, local_size, devices) for rank in range(local_size)]
    return [here.on_node(policy, rank, node, why) for rank, (node, why) in enumerate(chosen)]


def _choose(
    machine: Machine, nodes: Sequence[NumaNode], policy: str, rank: int, size: int, devices: Sequence[PciDevice | None]
) -> tuple[NumaNode, str]:
    """Return the node of a rank, and why."""
    count = len(nodes)
    if policy == "round_robin":
        return nodes[rank % count], f"local rank {rank} modulo {count} nodes"
    if policy == "block":
        return nodes[rank * count // size], f"local rank {rank} of {size}, filled node after node ({count})"
    node, why = _beside(machine, nodes, rank, size, devices[rank] if rank < len(devices) else None)
    if policy == "pci":
        return node, why
    if count == 1:
        return node, f"the only NUMA node, so worst means nothing here ({why})"
    distances = dict(zip((other.index for other in machine.nodes), node.distances, strict=False))
    others = [other for other in nodes if other is not node]
    farthest = max(others, key=lambda other: distances.get(other.index, 0))  # the first of equals
    far = distances.get(farthest.index)
    return farthest, f"{'the distances are unknown' if far is None else f'at distance {far}'} from pci's choice: {why}"


def _beside(
    machine: Machine, nodes: Sequence[NumaNode], rank: int, size: int, gpu: PciDevice | None
) -> tuple[NumaNode, str]:
    """Return the node of the rank's GPU, else of a network card, else what `block` says. It always has CPUs."""
    by_index = {node.index: node for node in nodes}

    def of(device: PciDevice) -> NumaNode | None:
        if device.numa_node is None or device.numa_node < 0:
            return nodes[0] if len(machine.nodes) == 1 else None
        return by_index.get(device.numa_node)

    if gpu is not None:
        if node := of(gpu):
            return node, f"{gpu.name} is on node {node.index}"
        for nic in paths.nearest_nics(machine, gpu):
            if node := of(nic):
                return node, f"{gpu.name} tells no node with CPUs; its nearest card {nic.name} is on node {node.index}"
    cards = {node.index: nic for nic in reversed(machine.nics) if nic.numa_node is not None and (node := of(nic))}
    if gpu is None and cards:
        index = sorted(cards)[rank * len(cards) // size]
        return by_index[index], f"no GPU; card {cards[index].name} is on node {index}"
    lacking = f"{gpu.name} tells no node with CPUs" if gpu else "no GPU, and no network card tells a node"
    if len(nodes) == 1:
        return nodes[0], f"{lacking}; there is one node"
    node, why = _choose(machine, nodes, "block", rank, size, ())
    return node, f"{lacking}, so block: {why}"


@dataclass(frozen=True, slots=True)
class _Here:
    """Knows what a rank may be given on this machine."""

    machine: Machine
    allowed: Collection[int]
    memory: bool
    allowed_memory: Collection[int] | None

    def cpus(self, wanted: Collection[int]) -> tuple[int, ...]:
        return tuple(sorted(set(wanted) & set(self.allowed)))

    def on_node(self, policy: str, rank: int, node: NumaNode, why: str) -> Placement:
        cpus = self.cpus(node.cpus)
        if not cpus:
            raise EnvironmentProblem(
                f"binding={policy} sends local rank {rank} to NUMA node {node.index} ({why}), but none of its CPUs "
                f"{cpulist.text(node.cpus)} may be used: allowed are {cpulist.text(self.allowed)}",
                hint="give this container or job CPUs of all nodes (cpuset, taskset, --exclusive), or leave "
                f"binding={policy} out",
            )
        some = f"; {len(cpus)} of the {len(node.cpus)} CPUs of node {node.index} may be used"
        placed = Placement(cpus=cpus, memory_nodes=None, why=why + (some if len(cpus) < len(node.cpus) else ""))
        return self._with_memory(policy, rank, placed, [node])

    def by_mask(self, rank: int, mask: tuple[int, ...]) -> Placement:
        if outside := set(mask) - set(self.allowed):
            raise UsageError(
                f"cpu_masks has CPU{'s' if len(outside) > 1 else ''} {cpulist.text(outside)} for local rank {rank}, "
                f"but allowed are {cpulist.text(self.allowed)}",
                hint="name CPUs that this process may use: taskset -cp $$ lists them",
            )
        nodes = [node for node in self.machine.nodes if set(node.cpus) & set(mask)]
        placed = Placement(cpus=mask, memory_nodes=None, why=f"list {rank + 1} of cpu_masks")
        return self._with_memory("explicit", rank, placed, nodes)

    def _with_memory(self, policy: str, rank: int, placed: Placement, nodes: Sequence[NumaNode]) -> Placement:
        """Add the memory of `nodes`, or of those nearest to them where they have none."""
        if not self.memory or not nodes:
            return placed
        memory_nodes = {near.index for node in nodes if (near := self._memory_of(node)) is not None}
        if self.allowed_memory is not None and not memory_nodes <= set(self.allowed_memory):
            raise EnvironmentProblem(
                f"binding={policy} binds the memory of local rank {rank} to {_nodes_text(sorted(memory_nodes))}, but "
                f"memory is allowed from {cpulist.text(self.allowed_memory)} only",
                hint="give this container or job the memory of all nodes (cpuset.mems), or bind CPUs alone: "
                "binding_memory=off",
            )
        if not memory_nodes:
            return placed
        bare = [node.index for node in nodes if node.memory_bytes == 0]
        why = f"{placed.why}; {_nodes_text(bare)} has no memory, so the nearest that has" if bare else placed.why
        return replace(placed, memory_nodes=tuple(sorted(memory_nodes)), why=why)

    def _memory_of(self, node: NumaNode) -> NumaNode | None:
        if node.memory_bytes != 0:
            return node
        having = [other for other in self.machine.nodes if other.memory_bytes]
        distances = dict(zip((other.index for other in self.machine.nodes), node.distances, strict=False))
        return min(having, key=lambda other: distances.get(other.index, 255), default=None)


def _nodes_text(nodes: Sequence[int]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {cpulist.text(nodes)}"
