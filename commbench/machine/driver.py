"""What sysfs does not know of GPUs and their driver does: models, NVLinks, and GPUs of containers without a PCI bus.

On this machine NVML is asked. A recorded machine has the answers in `gpus.json` at its root:

    {"gpus": [{"pci_bus_id": "0000:0f:00.0", "model": "NVIDIA A100-SXM4-40GB", "numa_node": 0}, ...],
     "nvlinks": {"0000:0f:00.0": {"0000:10:00.0": 12}}}

All of it may be missing; `nvlinks` has each pair once, and GPUs that only it names are there too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commbench.machine import gpus

FILE = "gpus.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedGpu:
    pci_bus_id: str
    model: str = ""
    numa_node: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverReport:
    gpus: tuple[ReportedGpu, ...] = ()
    nvlinks: dict[tuple[str, str], int] = field(default_factory=dict)  # by PCI bus ids
    notes: tuple[str, ...] = ()


def ask() -> DriverReport:
    """Return what the driver of this machine reports. Never raises."""
    read = gpus.read().gpus
    ids = [bus_id(gpu.pci_bus_id or "") for gpu in read]
    return DriverReport(
        gpus=tuple(
            ReportedGpu(pci_bus_id=id, model=gpu.name, numa_node=gpu.numa_node)
            for id, gpu in zip(ids, read, strict=True)
        ),
        nvlinks={(ids[first], ids[second]): count for (first, second), count in gpus.nvlinks().items()},
    )


def recorded(root: Path) -> DriverReport:
    """Return what the driver said on a recorded machine; nothing where it has no such file. Never raises."""
    path = root / FILE
    try:
        content = json.loads(path.read_bytes())
        links = {
            (bus_id(first), bus_id(second)): int(count)
            for first, others in content.get("nvlinks", {}).items()
            for second, count in others.items()
        }
        listed = tuple(_gpu(gpu) for gpu in content.get("gpus", ()))
    except FileNotFoundError:
        return DriverReport()
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        return DriverReport(notes=(f"{FILE} cannot be used: {type(error).__name__}: {error}",))
    known = {gpu.pci_bus_id for gpu in listed}
    further = {id: None for pair in links for id in pair if id not in known}
    return DriverReport(gpus=(*listed, *(ReportedGpu(pci_bus_id=id) for id in further)), nvlinks=links)


def to_json(report: DriverReport) -> str:
    links: dict[str, dict[str, int]] = {}
    for (first, second), count in report.nvlinks.items():
        links.setdefault(first, {})[second] = count
    listed = [
        {"pci_bus_id": gpu.pci_bus_id, "model": gpu.model, "numa_node": gpu.numa_node}
        for gpu in report.gpus
    ]  # fmt: skip
    return json.dumps({"gpus": listed, "nvlinks": links}, indent=1) + "\n"


def bus_id(text: str) -> str:
    """Return a bus id as sysfs writes it: NVML has more digits, in capitals."""
    match = re.fullmatch(r"([0-9a-f]+):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.lower())
    return f"{int(match[1], 16):04x}:{match[2]}" if match else text.lower()


def _gpu(entry: dict[str, Any]) -> ReportedGpu:
    node = entry.get("numa_node")
    return ReportedGpu(
        pci_bus_id=bus_id(entry["pci_bus_id"]),
        model=str(entry.get("model") or ""),
        numa_node=None if node is None else int(node),
    )
