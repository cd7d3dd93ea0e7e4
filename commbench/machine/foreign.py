"""A machine as other tools write it down: NCCL's topology XML, and the text of `nvidia-smi topo -m`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from commbench.errors import UsageError
from commbench.machine import cpulist
from commbench.machine.machine import Machine, NumaNode, NvLinks, PciDevice
from commbench.machine.pci import order

_HINT = (
    "give the XML that NCCL writes with NCCL_TOPO_DUMP_FILE, the text of nvidia-smi topo -m, or a folder of"
    " commbench topo --record"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PATH = re.compile(r"X|NV\d+|PIX|PXB|PHB|NODE|SYS")
_ON_A_NODE = ("PIX", "PXB", "PHB", "NODE")


def read(path: Path) -> Machine:
    """Read a file of either kind, by what it holds. Raises `UsageError`."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}", hint=_HINT) from error
    try:
        return _nccl(text) if text.lstrip().startswith("<") else _smi(_COLOUR.sub("", text))
    except UsageError:
        raise
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{path}: {problem}", hint=_HINT) from None


def _nccl(text: str) -> Machine:
    """Read NCCL's XML: a tree of NUMA nodes (`cpu`), bridges and devices (`pci`), with GPUs and cards at its leaves."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("NCCL writes no document type")
    root = ElementTree.fromstring(text)
    if root.tag != "system":
        raise ValueError(f"<{root.tag}> where NCCL writes <system>")
    nodes: list[NumaNode] = []
    gpus: list[PciDevice] = []
    nics: list[PciDevice] = []
    links: dict[str, dict[str, int]] = {}
    for cpu in root.findall("cpu"):
        index = int(cpu.attrib["numaid"])
        cpus = _mask(cpu.get("affinity", ""))
        nodes.append(NumaNode(index=max(index, 0), cpus=cpus))
        _devices(cpu, (f"NUMA node {index}",), max(index, 0), cpus, gpus, nics, links)
    if not nodes:
        raise ValueError("there is no <cpu> in it")
    gpus = [
        _named(gpu, f"GPU{number}") for number, gpu in enumerate(sorted(gpus, key=lambda gpu: order(gpu.pci_bus_id)))
    ]
    return Machine(
        cpus=tuple(sorted({cpu for node in nodes for cpu in node.cpus})),
        nodes=tuple(sorted(nodes, key=lambda node: node.index)),
        gpus=tuple(gpus),
        nics=tuple(nics),
        nvlinks=tuple(
            NvLinks(first=first.name, second=second.name, count=count)
            for number, first in enumerate(gpus)
            for second in gpus[number + 1 :]
            if (count := _nvlinks(links, first.pci_bus_id, second.pci_bus_id))
        ),
        notes=(
            "read from NCCL's topology, which has no memory, no distances and no models of GPUs",
            *(("NV is xGMI here: links of AMD's GPUs",) if root.find(".//xgmi") is not None else ()),
        ),
    )


def _devices(
    element: ElementTree.Element, path: tuple[str, ...], node: int, cpus: tuple[int, ...], gpus: list[PciDevice],
    nics: list[PciDevice], links: dict[str, dict[str, int]],
) -> None:  # fmt: skip
    """Collect what hangs below an element whose path from the host bridge down is `path`."""
    for pci in element.findall("pci"):
        own = (*path, pci.attrib["busid"])
        where = {"pci_bus_id": own[-1], "pci_path": own, "numa_node": node, "cpus": cpus}
        for gpu in pci.findall("gpu"):
            model = f"compute capability {int(sm) / 10:.1f}" if (sm := gpu.get("sm", "")).isdigit() else ""
            gpus.append(PciDevice(kind="gpu", name="", model=model, **where))  # type: ignore[arg-type]
            for link in (*gpu.findall("nvlink"), *gpu.findall("xgmi")):
                of_gpu = links.setdefault(own[-1], {})
                of_gpu[link.attrib["target"]] = of_gpu.get(link.attrib["target"], 0) + int(link.attrib["count"])
        for net in pci.findall("nic/net"):
            speed = f"{int(mbit) / 1000:g} Gbit/s" if (mbit := net.get("speed", "")).isdigit() else ""
            nics.append(PciDevice(kind="nic", name=net.attrib["name"], speed=speed, **where))  # type: ignore[arg-type]
        _devices(pci, own, node, cpus, gpus, nics, links)


def _named(device: PciDevice, name: str) -> PciDevice:
    return PciDevice(
        kind=device.kind, name=name, model=device.model, pci_bus_id=device.pci_bus_id, pci_path=device.pci_path,
        numa_node=device.numa_node, cpus=device.cpus,
    )  # fmt: skip


def _nvlinks(links: Mapping[str, Mapping[str, int]], first: str, second: str) -> int:
    """Return how many NVLinks two GPUs share: their own, or through each switch as many as both have."""
    own, other = links.get(first, {}), links.get(second, {})
    direct = own.get(second, 0) or other.get(first, 0)
    return direct or sum(min(count, other.get(switch, 0)) for switch, count in own.items())


def _mask(text: str) -> tuple[int, ...]:
    """Return the CPUs of a mask in hexadecimal words of 32 bits: 0000ffff,ffffffff."""
    bits = int("".join(word.rjust(8, "0") for word in text.split(",")) or "0", 16)
    return tuple(index for index in range(bits.bit_length()) if bits >> index & 1)


def _smi(text: str) -> Machine:
    """Read the matrix of nvidia-smi: a row for each device, then the CPUs and the NUMA node that are near it."""
    lines = [line.split() for line in text.splitlines()]
    head = next((words for words in lines if words and words[0] == "GPU0" and "CPU" in words), None)
    if head is None:
        raise ValueError("no row GPU0 .. CPU Affinity, as nvidia-smi topo -m begins")
    names = head[: head.index("CPU")]
    legend = {words[0].rstrip(":"): words[1] for words in lines if len(words) == 2 and re.match(r"NIC\d+:$", words[0])}
    told: dict[tuple[str, str], str] = {}
    near: dict[str, tuple[tuple[int, ...], int | None]] = {}
    for words in lines:
        cells = words[1 : len(names) + 1]
        if words is head or not words or words[0] not in names or len(cells) < len(names):
            continue
        if wrong := [cell for cell in cells if not _PATH.fullmatch(cell)]:
            raise ValueError(
                f"{wrong[0]!r} in the row of {words[0]} is not a path; known: X, NV4, PIX, PXB, PHB, NODE, SYS"
            )
        told |= {(words[0], name): cell for name, cell in zip(names, cells, strict=True)}
        rest = words[len(names) + 1 :]
        cpus = cpulist.parse(rest[0]) if rest and re.fullmatch(r"[\d,-]+", rest[0]) else ()
        near[words[0]] = cpus, int(rest[1]) if len(rest) > 1 and rest[1].isdigit() else None
    if missing := [name for name in names if name not in near]:
        raise ValueError(f"the row of {missing[0]} is missing or cut short")
    return _machine(names, told, near, legend)


def _machine(
    names: list[str], told: Mapping[tuple[str, str], str], near: Mapping[str, tuple[tuple[int, ...], int | None]],
    legend: Mapping[str, str],
) -> Machine:  # fmt: skip
    gpus = [name for name in names if name.startswith("GPU")]
    cpus_of: dict[int, set[int]] = {}
    for name in gpus:
        cpus, node = near[name]
        cpus_of.setdefault(node or 0, set()).update(cpus)
    devices = []
    for name in names:
        gpu = name if name in gpus else next((gpu for gpu in gpus if told[name, gpu] in _ON_A_NODE), None)
        cpus, node = near[gpu] if gpu else ((), None)
        kind = "gpu" if name in gpus else "nic"
        devices.append(PciDevice(kind=kind, name=legend.get(name, name), numa_node=node, cpus=cpus))
    shown = {name: device.name for name, device in zip(names, devices, strict=True)}
    return Machine(
        cpus=tuple(sorted(set().union(*cpus_of.values()))),
        nodes=tuple(NumaNode(index=index, cpus=tuple(sorted(cpus))) for index, cpus in sorted(cpus_of.items())),
        gpus=tuple(device for device in devices if device.kind == "gpu"),
        nics=tuple(device for device in devices if device.kind == "nic"),
        nvlinks=tuple(
            NvLinks(first=first, second=second, count=int(told[first, second].removeprefix("NV")))
            for number, first in enumerate(gpus)
            for second in gpus[number + 1 :]
            if told[first, second].startswith("NV")
        ),
        told=tuple((shown[first], shown[second], path) for (first, second), path in told.items()),
        notes=("read from nvidia-smi topo -m: PCI addresses, memory and what lies behind NVLinks are not in it",),
    )
