"""What a machine is made of, as far as placing ranks goes: CPUs, NUMA nodes, GPUs, network cards, who is near whom."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    index: int  # of the kernel; they need not be consecutive
    cpus: tuple[int, ...]  # that are online
    memory_bytes: int | None = None  # None: not reported
    distances: tuple[int, ...] = ()  # to each node of the machine, in its order; 10 is itself


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDevice:
    kind: str  # "gpu", "nic"
    name: str  # GPU0, mlx5_0, eth0
    model: str = ""
    pci_bus_id: str = ""  # 0000:17:00.0; "" where it is on no PCI bus
    pci_path: tuple[str, ...] = ()  # bus ids from the host bridge down to the device
    numa_node: int | None = None  # None: the kernel does not say (-1 in sysfs)
    cpus: tuple[int, ...] = ()  # that the kernel calls local
    speed: str = ""  # of a card's link, in words: 200 Gbit/s; "down" where it has none
    link: str = ""  # of a card: InfiniBand, RoCE, Ethernet
    netdevs: tuple[str, ...] = ()  # of a card: the interfaces on its PCI function
    pcie_gbps: float | None = None  # GB/s of its PCIe link in one direction; None: not told


@dataclass(frozen=True, slots=True, kw_only=True)
class NvLinks:
    """NVLinks between two GPUs, by name; through switches, as many as both have."""

    first: str
    second: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    cpus: tuple[int, ...]  # that are online
    nodes: tuple[NumaNode, ...]
    gpus: tuple[PciDevice, ...] = ()  # in the order of their PCI bus ids, as CUDA_DEVICE_ORDER=PCI_BUS_ID counts them
    nics: tuple[PciDevice, ...] = ()
    nvlinks: tuple[NvLinks, ...] = ()  # each pair once, in the order of `gpus`
    notes: tuple[str, ...] = ()  # what could not be read, and why
    told: tuple[tuple[str, str, str], ...] = ()  # paths of two devices by name, where another tool told them

    def node(self, index: int) -> NumaNode:
        """Return the node of that number. Raises KeyError where the machine has no such node."""
        for node in self.nodes:
            if node.index == index:
                return node
        raise KeyError(index)

    def near(self, device: PciDevice) -> NumaNode | None:
        """Return the NUMA node that a device hangs on. One node leaves no question; None: nobody knows."""
        if device.numa_node is not None and device.numa_node >= 0:
            return self.node(device.numa_node)
        return self.nodes[0] if len(self.nodes) == 1 else None
