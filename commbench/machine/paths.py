"""The path between two devices, in the words of `nvidia-smi topo -m`, and the network cards next to a GPU."""

from __future__ import annotations

from enum import StrEnum

from commbench.machine.cards import DOWN
from commbench.machine.machine import Machine, PciDevice


class Kind(StrEnum):
    """The kinds of paths, from near to far."""

    SELF = "X"
    NVLINK = "NV#"
    PIX = "PIX"
    PXB = "PXB"
    PHB = "PHB"
    NODE = "NODE"
    SYS = "SYS"
    UNKNOWN = "?"


MEANING = {
    Kind.SELF: "itself",
    Kind.NVLINK: "that many NVLinks",
    Kind.PIX: "PCIe, through one switch at most",
    Kind.PXB: "PCIe, through several switches, but no host bridge",
    Kind.PHB: "PCIe, through a host bridge of the CPU",
    Kind.NODE: "PCIe, and between host bridges of one NUMA node",
    Kind.SYS: "PCIe, and between NUMA nodes",
    Kind.UNKNOWN: "unknown on this machine",
}
_ORDER = list(Kind)


def kind(machine: Machine, first: PciDevice, second: PciDevice) -> Kind:
    if first == second:
        return Kind.SELF
    return Kind.NVLINK if nvlinks(machine, first, second) else pcie(machine, first, second)


def label(machine: Machine, first: PciDevice, second: PciDevice) -> str:
    """Return the kind, with the number of NVLinks: NV18."""
    return f"NV{count}" if (count := nvlinks(machine, first, second)) else str(kind(machine, first, second))


def nvlinks(machine: Machine, first: PciDevice, second: PciDevice) -> int:
    names = {first.name, second.name}
    return next((links.count for links in machine.nvlinks if {links.first, links.second} == names), 0)


def pcie(machine: Machine, first: PciDevice, second: PciDevice) -> Kind:
    """Return the kind of path over the PCI bus, whatever NVLinks there are."""
    if machine.told:
        pair = (first.name, second.name)
        word = next((word for *names, word in machine.told if tuple(names) == pair), Kind.UNKNOWN)
        return Kind(word) if word in tuple(Kind) else Kind.UNKNOWN  # NV18 tells nothing of the bus
    shared = _shared(first.pci_path, second.pci_path)
    if shared > 1:  # a bridge below the host bridge: the upper side of a switch, or of a card with several functions
        # A switch has one more bridge on each way down. Beside those nothing but the devices themselves is left.
        below = max(len(first.pci_path), len(second.pci_path)) - shared
        return Kind.PIX if below <= 2 else Kind.PXB
    if shared == 1:
        return Kind.PHB
    near, other = machine.near(first), machine.near(second)
    if near is None or other is None:
        return Kind.UNKNOWN
    return Kind.NODE if near.index == other.index else Kind.SYS


def _shared(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Return how many steps from the host bridge down two paths have in common."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def nearest_nics(machine: Machine, gpu: PciDevice) -> list[PciDevice]:
    """Return the cards with the shortest path to a GPU, all that are equally near, in the machine's order.

    Where a machine has InfiniBand or RoCE, Ethernet cards are for management and do not count; nor do cards without a
    link while others have one.
    """
    usable = [nic for nic in machine.nics if nic.speed != DOWN] or list(machine.nics)
    usable = [nic for nic in usable if nic.link != "Ethernet"] or usable
    ways = [(_ORDER.index(pcie(machine, gpu, nic)), nic) for nic in usable]
    nearest = min((way for way, _ in ways), default=0)
    return [nic for way, nic in ways if way == nearest]
