"""Where a device hangs: its place on the PCI bus, and what is near it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from commbench.machine.files import Files

_BRIDGE = re.compile(r"pci[0-9a-f]{4,}:[0-9a-f]{2}")
_FUNCTION = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NVIDIA, _AMD = "0x10de", "0x1002"
_GPU_CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")  # VGA, 3D, display, processing accelerator
_VENDORS = {
    "0x1002": "AMD", "0x1022": "AMD", "0x10de": "NVIDIA", "0x10ec": "Realtek", "0x1077": "QLogic", "0x14e4": "Broadcom",
    "0x1414": "Microsoft", "0x15b3": "Mellanox", "0x1924": "Solarflare", "0x1af4": "virtio", "0x1d0f": "Amazon",
    "0x1dd8": "Pensando", "0x8086": "Intel",
}  # fmt: skip
_MODELS = {
    ("0x15b3", "0x1017"): "ConnectX-5", ("0x15b3", "0x1018"): "ConnectX-5 VF", ("0x15b3", "0x1019"): "ConnectX-5 Ex",
    ("0x15b3", "0x101b"): "ConnectX-6", ("0x15b3", "0x101c"): "ConnectX-6 VF", ("0x15b3", "0x101d"): "ConnectX-6 Dx",
    ("0x15b3", "0x101e"): "ConnectX VF", ("0x15b3", "0x101f"): "ConnectX-6 Lx", ("0x15b3", "0x1021"): "ConnectX-7",
    ("0x15b3", "0x1023"): "ConnectX-8", ("0x15b3", "0xa2d6"): "BlueField-2", ("0x15b3", "0xa2dc"): "BlueField-3",
    ("0x1d0f", "0xec20"): "ENA",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    folder: str  # of the PCI function; of the device itself where it is on no PCI bus
    bus_id: str
    path: tuple[str, ...]
    numa_node: int | None
    cpus: tuple[int, ...]
    pcie_gbps: float | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads devices of a machine."""

    files: Files
    nodes: Collection[int]
    cpus: Collection[int]
    notes: list[str] = field(default_factory=list)

    def place(self, folder: str) -> Place:
        """Return the PCI function that the folder of a device lies in."""
        parts = folder.split("/")
        steps = [number for number, part in enumerate(parts) if _BRIDGE.fullmatch(part) or _FUNCTION.fullmatch(part)]
        path = tuple(parts[number] for number in steps)
        on_bus = bool(path) and _FUNCTION.fullmatch(path[-1]) is not None
        if on_bus:
            folder = "/".join(parts[: steps[-1] + 1])
        node = self.files.number(f"{folder}/numa_node")
        if node is not None and node not in self.nodes:
            if node >= 0:
                self.notes.append(f"/{folder} is near NUMA node {node}, which this machine does not have")
            node = None
        cpus = self.files.cpus(f"{folder}/local_cpulist") or frozenset()
        return Place(
            folder=folder,
            bus_id=path[-1] if on_bus else "",
            path=path if on_bus else (),
            numa_node=node,
            cpus=tuple(sorted(cpus.intersection(self.cpus))),
            pcie_gbps=_pcie_gbps(self.files, folder) if on_bus else None,
        )

    def model(self, place: Place) -> str:
        """Return the model by the ids of its PCI function; the commonest cards have a name."""
        vendor = self.files.text(f"{place.folder}/vendor") or ""
        device = self.files.text(f"{place.folder}/device") or ""
        if not place.bus_id or not vendor:
            return ""
        return _MODELS.get((vendor, device)) or f"{_VENDORS.get(vendor, vendor)} {device.removeprefix('0x')}".strip()

    def gpus(self) -> list[tuple[Place, str, bool]]:
        """Return place, model, and whether it is NVIDIA's, of each GPU."""
        listed = []
        for name in self.files.names("sys/bus/pci/devices"):
            folder = self.files.target(f"sys/bus/pci/devices/{name}")
            if folder and is_gpu(self.files, folder):
                place = self.place(folder)
                listed.append((place, self.model(place), self.files.text(f"{folder}/vendor") == _NVIDIA))
        return listed


def _pcie_gbps(files: Files, folder: str) -> float | None:
    """Return GB/s of a function's PCIe link in one direction, what packets cost not taken off.

    Its width is as trained. An idle GPU slows its link down, so of the speed the highest that both of its ends have
    counts.
    """
    width = files.number(f"{folder}/current_link_width") or 0
    ends = [files.text(f"{path}/max_link_speed") or "" for path in (folder, folder.rpartition("/")[0])]
    speeds = [float(match[1]) for end in ends if (match := re.match(r"(\d+(?:\.\d+)?) GT/s", end))]
    if not speeds or not 0 < width <= 64:
        return None
    speed = min(speeds)
    coding = 8 / 10 if speed <= 5 else 128 / 130 if speed <= 32 else 242 / 256
    return speed * coding * width / 8


def is_gpu(files: Files, folder: str) -> bool:
    if not (files.text(f"{folder}/class") or "").startswith(_GPU_CLASSES):
        return False
    return files.text(f"{folder}/vendor") in (_NVIDIA, _AMD)


def order(bus_id: str) -> tuple[int, ...]:
    """Return a key that sorts bus ids as CUDA_DEVICE_ORDER=PCI_BUS_ID does; what is no bus id goes last."""
    return tuple(int(part, 16) for part in re.split("[:.]", bus_id)) if _FUNCTION.fullmatch(bus_id) else (1 << 64,)
