"""A machine read from sysfs: this one, or one that was recorded under another root (`commbench topo --record`)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from commbench.errors import UsageError
from commbench.machine import cards, driver
from commbench.machine.driver import DriverReport
from commbench.machine.files import Files
from commbench.machine.machine import Machine, NumaNode, NvLinks, PciDevice
from commbench.machine.pci import Place, Reader, order

_NODES = "sys/devices/system/node"
ONLINE = "sys/devices/system/cpu/online"
_HINT = "record a machine with: commbench topo --record DIR"


def read(root: Path = Path("/")) -> Machine:
    """Read a machine. Raises UsageError where `root` holds none; whatever else is missing or odd is a note of it."""
    return assemble(Files(root), read_driver(root))


def read_driver(root: Path) -> DriverReport:
    """Return what the GPUs' driver reports, or did when it was recorded. Raises UsageError without a folder."""
    if not root.is_dir():
        raise UsageError(f"{str(root)!r} {'is not a folder' if root.exists() else 'is not there'}", hint=_HINT)
    return driver.ask() if is_here(root) else driver.recorded(root)


def is_here(root: Path) -> bool:
    return root.resolve() == Path("/")


def assemble(files: Files, report: DriverReport) -> Machine:
    """Return the machine that `files` and the driver describe."""
    notes = list(report.notes)
    nodes = _nodes(files, notes)
    cpus = _cpus(files, nodes, notes)
    nodes = [_with(node, cpus) for node in nodes]
    if not nodes:
        notes.append(f"/{_NODES} tells of no NUMA nodes: taken for one that has all CPUs")
        nodes = [NumaNode(index=0, cpus=cpus, memory_bytes=_memory(files.text("proc/meminfo")), distances=(10,))]
    reader = Reader(files, {node.index for node in nodes}, set(cpus), notes)
    gpus = _gpus(reader, report)
    return Machine(
        cpus=cpus,
        nodes=tuple(nodes),
        gpus=gpus,
        nics=tuple(cards.read(reader)),
        nvlinks=_nvlinks(gpus, report),
        notes=tuple(dict.fromkeys(notes)),
    )


def _nodes(files: Files, notes: list[str]) -> list[NumaNode]:
    names = [name for name in files.names(_NODES) if re.fullmatch(r"node\d{1,6}", name)]
    nodes = []
    for name in names:
        cpus = files.cpus(f"{_NODES}/{name}/cpulist")
        if cpus is None:
            notes.append(f"/{_NODES}/{name}/cpulist is missing or no list of CPUs")
        distances = _distances(files.text(f"{_NODES}/{name}/distance") or "")
        if len(distances) != len(names):
            notes.append(f"/{_NODES}/{name}/distance is missing, or not {len(names)} numbers")
            distances = ()
        nodes.append(
            NumaNode(
                index=int(name.removeprefix("node")),
                cpus=tuple(sorted(cpus or ())),
                memory_bytes=_memory(files.text(f"{_NODES}/{name}/meminfo")),
                distances=distances,
            )
        )
    return nodes


def _cpus(files: Files, nodes: list[NumaNode], notes: list[str]) -> tuple[int, ...]:
    cpus = files.cpus(ONLINE)
    if cpus:
        return tuple(sorted(cpus))
    cpus = frozenset(cpu for node in nodes for cpu in node.cpus)
    if not cpus:
        if not is_here(files.root):
            raise UsageError(
                f"no machine under {str(files.root)!r}: neither {ONLINE} nor {_NODES}/node*/cpulist names a CPU",
                hint=_HINT,
            )
        cpus = frozenset(os.sched_getaffinity(0))
    notes.append(f"/{ONLINE} is missing or no list of CPUs: taken from elsewhere")
    return tuple(sorted(cpus))


def _with(node: NumaNode, online: tuple[int, ...]) -> NumaNode:
    return NumaNode(
        index=node.index,
        cpus=tuple(sorted(set(node.cpus) & set(online))),
        memory_bytes=node.memory_bytes,
        distances=node.distances,
    )


def _distances(text: str) -> tuple[int, ...]:
    words = text.split()
    return tuple(map(int, words)) if all(re.fullmatch(r"\d{1,9}", word) for word in words) else ()


def _memory(meminfo: str | None) -> int | None:
    match = re.search(r"MemTotal:\s+(\d{1,15}) kB", meminfo or "")
    return int(match[1]) * 1024 if match else None


def _gpus(reader: Reader, report: DriverReport) -> tuple[PciDevice, ...]:
    """Return GPUs on the bus and those that the driver shows, in the order of their bus ids."""
    shown = {gpu.pci_bus_id: gpu for gpu in report.gpus}
    places: dict[str, tuple[Place | None, str]] = dict.fromkeys(shown, (None, ""))
    hidden = 0
    for place, model, nvidia in reader.gpus():
        # CUDA counts those that the driver shows, and so must we: a container has a part of what is on the bus.
        if nvidia and shown and place.bus_id not in shown:
            hidden += 1
        else:
            places[place.bus_id] = (place, model)
    if hidden:
        reader.notes.append(f"{hidden} GPUs are on the PCI bus that the driver does not show here: left out")
    listed = []
    for number, id in enumerate(sorted(places, key=order)):
        place_or_none, model = places[id]
        known = shown.get(id)
        node = place_or_none.numa_node if place_or_none else None
        if node is None and known and known.numa_node in reader.nodes:
            node = known.numa_node
        listed.append(
            PciDevice(
                kind="gpu",
                name=f"GPU{number}",
                model=(known.model if known else "") or model,
                pci_bus_id=id,
                pci_path=place_or_none.path if place_or_none else (),
                numa_node=node,
                cpus=place_or_none.cpus if place_or_none else (),
                pcie_gbps=place_or_none.pcie_gbps if place_or_none else None,
            )
        )
    return tuple(listed)


def _nvlinks(gpus: tuple[PciDevice, ...], report: DriverReport) -> tuple[NvLinks, ...]:
    links = []
    for number, first in enumerate(gpus):
        for second in gpus[number + 1 :]:
            pair = (first.pci_bus_id, second.pci_bus_id)
            count = report.nvlinks.get(pair) or report.nvlinks.get((pair[1], pair[0])) or 0
            if count > 0:
                links.append(NvLinks(first=first.name, second=second.name, count=count))
    return tuple(links)
