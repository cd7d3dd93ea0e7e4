"""What a machine says its links do, for a transport: the ground of a bound that is labelled nominal.

Between nodes: the network cards that the transport would use, each at the rate of its port, or of its PCIe slot where
that is slower. Inside a node: of GPUs NVLink, or PCIe where it does not join all of them. Of memory nobody knows. What
cannot be told is left out: a bound must not be too low.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from commbench.layout import LinkClass
from commbench.links import LinkRate
from commbench.machine import gpus, paths, sysfs
from commbench.machine.cards import DOWN
from commbench.machine.driver import bus_id
from commbench.machine.gpus import Gpu
from commbench.machine.machine import Machine, PciDevice

_BITS = {"Mbit/s": 1e6, "Gbit/s": 1e9}
_NET = Path("/sys/class/net")


def here(transport: str, ranks: int, environ: Mapping[str, str] = os.environ) -> dict[LinkClass, LinkRate]:
    """Return the rates that hold for `ranks` ranks of this machine. Never raises."""
    if transport not in ("gloo", "mpi", "nccl"):
        return {}
    try:
        visible = [bus_id(place) for _, place in gpus.visible(environ)][:ranks] if transport == "nccl" else []
        found = gpus.read().gpus if visible else ()
        machine = sysfs.read()
        rates = nominal(machine, transport, environ, interfaces(environ), visible, found)
        return {**rates, **(_to_host(machine, visible) if transport == "nccl" else {})}
    except Exception:  # of a strange machine: nothing is known then
        return {}


def nominal(
    machine: Machine, transport: str, environ: Mapping[str, str], used: Collection[str] = (),
    visible: Sequence[str] = (), found: Sequence[Gpu] = (),
) -> dict[LinkClass, LinkRate]:  # fmt: skip
    """Return the rates of a machine. used: interfaces of gloo; visible: bus ids of the GPUs that ranks have."""
    rates: dict[LinkClass, LinkRate] = {}
    shown = [gpu for gpu in machine.gpus if not visible or gpu.pci_bus_id in visible]
    cards = _cards(machine, transport, environ, used, shown)
    each = [_gbps(card) for card in cards]
    if each and all(each):
        names = ", ".join(card.name for card in cards)
        rates["inter"] = LinkRate(gbps=sum(rate or 0.0 for rate in each), of="node", kind="nominal", source=names)
    # Two ranks of one GPU talk inside it.
    if transport == "nccl" and len(shown) > 1 and (inside := _inside(machine, shown, found)):
        rates["intra"] = inside
    return rates


def _to_host(machine: Machine, visible: Sequence[str]) -> dict[LinkClass, LinkRate]:
    """Return what each GPU has to the memory of its host."""
    slots = [gpu.pcie_gbps for gpu in machine.gpus if not visible or gpu.pci_bus_id in visible]
    known = [slot for slot in slots if slot]
    return (
        {"host": LinkRate(gbps=min(known), kind="nominal", source="PCIe")} if known and len(known) == len(slots) else {}
    )


def interfaces(environ: Mapping[str, str], net: Path = _NET) -> set[str]:
    """Return the interfaces that gloo would use, and what a bond or a virtual network is made of."""
    named = [name.strip() for name in environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name.strip()]
    return set(_below(named or _of_host_name(), net))


def _of_host_name() -> list[str]:
    """Return the interfaces with the address of the host's name, on which gloo listens."""
    import psutil

    mine = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    return [name for name, held in psutil.net_if_addrs().items() if mine & {address.address for address in held}]


def _below(names: Iterable[str], net: Path) -> Iterable[str]:
    for name in names:
        lower = [path.name.removeprefix("lower_") for path in (net / name).glob("lower_*")]
        yield from _below(lower, net) if lower else [name]


def _cards(
    machine: Machine, transport: str, environ: Mapping[str, str], used: Collection[str], shown: Sequence[PciDevice]
) -> list[PciDevice]:
    """Return the cards over which a transport would talk to other nodes."""
    up = [nic for nic in machine.nics if nic.speed != DOWN]
    if transport == "gloo":
        return [nic for nic in up if {*used} & {*nic.netdevs}]
    rdma = [nic for nic in up if nic.link != "Ethernet"]
    if transport == "nccl":
        rdma = [] if environ.get("NCCL_IB_DISABLE") == "1" else _named(rdma, environ.get("NCCL_IB_HCA", ""))
        near = {nic.name for gpu in shown for nic in paths.nearest_nics(machine, gpu)}
        # NCCL takes the cards next to its GPUs; where it is told cards, these.
        rdma = [nic for nic in rdma if nic.name in near] or rdma if not environ.get("NCCL_IB_HCA") else rdma
    return rdma or _named(up, environ.get("NCCL_SOCKET_IFNAME", "") if transport == "nccl" else "")


def _named(cards: Sequence[PciDevice], wanted: str) -> list[PciDevice]:
    """Return the cards that NCCL's list means: beginnings of names, whole ones behind `=`, all but these behind `^`."""
    exclude, whole = wanted.startswith("^"), "=" in wanted[:2]
    words = [word.partition(":")[0] for word in wanted.lstrip("^=").split(",") if word]
    if not words:
        return list(cards)

    def meant(card: PciDevice) -> bool:
        names = {card.name, *card.netdevs}
        return any(name == word if whole else name.startswith(word) for name in names for word in words)

    return [card for card in cards if meant(card) != exclude]


def _gbps(card: PciDevice) -> float | None:
    """Return GB/s of a card: of its port, or of its slot where that is slower. None where the port does not say."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ([MG]bit/s)", card.speed)
    if not match or not float(match[1]):
        return None
    port = float(match[1]) * _BITS[match[2]] / 8e9
    return min(port, card.pcie_gbps) if card.pcie_gbps else port


def _inside(machine: Machine, shown: Sequence[PciDevice], found: Sequence[Gpu]) -> LinkRate | None:
    """Return what each GPU has to the others of its node."""
    known = {bus_id(gpu.pci_bus_id or ""): gpu for gpu in found}
    lanes = [known[gpu.pci_bus_id] for gpu in shown if gpu.pci_bus_id in known]
    linked = [gpu.nvlinks * gpu.nvlink_gbps for gpu in lanes if gpu.nvlinks and gpu.nvlink_gbps]
    slots = [gpu.pcie_gbps for gpu in shown if gpu.pcie_gbps]
    everywhere = all(paths.nvlinks(machine, one, other) for one, other in combinations(shown, 2))
    if everywhere and len(linked) == len(shown):
        slowest = min(lanes, key=lambda gpu: (gpu.nvlinks or 0) * (gpu.nvlink_gbps or 0.0))
        return LinkRate(gbps=min(linked), kind="nominal", source=f"{slowest.nvlinks} NVLinks")
    # Where some pairs have NVLink, both may be at work; where that is not told, nothing is.
    if len(slots) < len(shown) or any(gpu.nvlinks for gpu in lanes) or len(lanes) < len(shown):
        return None
    return LinkRate(gbps=min(slots), kind="nominal", source="PCIe")
