"""A machine for people, as a table like that of `nvidia-smi topo -m`, and for programs, as a dictionary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from commbench.machine import cpulist, paths
from commbench.machine.machine import Machine, PciDevice
from commbench.machine.paths import MEANING, Kind
from commbench.units import format_size

FORMAT_VERSION = 1  # of the dictionary; keys may be added without a new version


def dictionary(machine: Machine) -> dict[str, Any]:
    """Return a machine for JSON. CPU lists are text for taskset; `paths` is the matrix, `nearest_nics` is by GPU."""
    devices = (*machine.gpus, *machine.nics)
    return {
        "format_version": FORMAT_VERSION,
        "cpus": cpulist.text(machine.cpus),
        "numa_nodes": [dataclasses.asdict(node) | {"cpus": cpulist.text(node.cpus)} for node in machine.nodes],
        "gpus": [_device(gpu, ("link", "speed", "netdevs")) for gpu in machine.gpus],
        "nics": [_device(nic, ()) for nic in machine.nics],
        "paths": {
            first.name: {second.name: paths.label(machine, first, second) for second in devices} for first in devices
        },
        "nearest_nics": {gpu.name: [nic.name for nic in paths.nearest_nics(machine, gpu)] for gpu in machine.gpus},
        "notes": list(machine.notes),
    }


def _device(device: PciDevice, without: Sequence[str]) -> dict[str, Any]:
    values = dataclasses.asdict(device) | {"cpus": cpulist.text(device.cpus)}
    return {name: value for name, value in values.items() if name not in without}


def table(machine: Machine) -> str:
    """Return the matrix, the devices, the NUMA nodes, what the words mean, and what could not be read."""
    parts = [_matrix(machine), _devices(machine), _nodes(machine), _legend(machine)]
    if machine.notes:
        parts.append(["Notes", *(f"  {note}" for note in machine.notes)])
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _matrix(machine: Machine) -> list[str]:
    devices = (*machine.gpus, *machine.nics)
    if not devices:
        return ["No GPUs and no network cards"]
    head = ["", *(device.name for device in devices), "CPUs", "NUMA", *(["nearest NIC"] if machine.gpus else [])]
    rows = [head]
    for first in devices:
        near = machine.near(first)
        row = [first.name, *(paths.label(machine, first, second) for second in devices)]
        row += [cpulist.text(near.cpus if near else first.cpus) or "-", str(near.index) if near else "-"]
        if first.kind == "gpu":
            row.append(", ".join(nic.name for nic in paths.nearest_nics(machine, first)) or "-")
        rows.append(row)
    return _aligned(rows)


def _devices(machine: Machine) -> list[str]:
    rows = [["Device", "PCI", "Link", "Interfaces", "Model"]]
    for device in (*machine.gpus, *machine.nics):
        link = " ".join(filter(None, (device.link, device.speed)))
        rows.append([device.name, device.pci_bus_id or "-", link or "-", ", ".join(device.netdevs) or "-",
                     device.model or "-"])  # fmt: skip
    return _aligned(rows) if len(rows) > 1 else []


def _nodes(machine: Machine) -> list[str]:
    distances = all(node.distances for node in machine.nodes)
    indices = [str(node.index) for node in machine.nodes] if distances else []
    rows = [["NUMA", "CPUs", "Memory", *indices]]
    for node in machine.nodes:
        memory = "-" if node.memory_bytes is None else format_size(node.memory_bytes)
        rows.append(
            [str(node.index), cpulist.text(node.cpus) or "-", memory, *map(str, node.distances)][: len(rows[0])]
        )
    title = f"{len(machine.cpus)} CPUs, {len(machine.nodes)} NUMA node{'' if len(machine.nodes) == 1 else 's'}"
    return [f"{title}{'; the last columns are distances to each node' if distances else ''}", *_aligned(rows)]


def _legend(machine: Machine) -> list[str]:
    devices = (*machine.gpus, *machine.nics)
    used = {paths.kind(machine, first, second) for first in devices for second in devices} - {Kind.SELF}
    return [f"{kind:4}  {meaning}" for kind, meaning in MEANING.items() if kind in used]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    columns = max(map(len, rows))
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(columns)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
