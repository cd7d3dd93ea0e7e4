"""Network cards: one for each PCI function, by what the kernel has made of it - InfiniBand, RoCE, Ethernet."""

from __future__ import annotations

from commbench.machine.files import Files, natural
from commbench.machine.machine import PciDevice
from commbench.machine.pci import Place, Reader

_RDMA = "sys/class/infiniband"
_NET = "sys/class/net"
DOWN = "down"


def read(reader: Reader) -> list[PciDevice]:
    """Return the cards, InfiniBand and RoCE first, by name. Virtual interfaces are no cards."""
    places: dict[str, Place] = {}
    rdma: dict[str, list[str]] = {}  # folder of the card -> names
    netdevs: dict[str, list[str]] = {}
    for group, members in ((_RDMA, rdma), (_NET, netdevs)):
        for name in reader.files.names(group):
            folder = _device(reader.files, group, name)
            if folder:
                place = reader.place(folder)
                places.setdefault(place.folder, place)
                members.setdefault(place.folder, []).append(name)
    virtual = {folder for folder in places if reader.files.target(f"{folder}/physfn") in places}
    if virtual:
        reader.notes.append(f"{len(virtual)} virtual functions of the network cards are left out")
    cards = []
    for folder in places.keys() - virtual:
        place = places[folder]
        names, interfaces = rdma.get(folder, []), netdevs.get(folder, [])
        link, speed = _rdma(reader.files, names[0]) if names else _ethernet(reader.files, interfaces)
        cards.append(
            PciDevice(
                kind="nic",
                name=(names or interfaces)[0],
                model=reader.model(place),
                pci_bus_id=place.bus_id,
                pci_path=place.path,
                numa_node=place.numa_node,
                cpus=place.cpus,
                speed=speed,
                link=link,
                netdevs=tuple(interfaces),
                pcie_gbps=place.pcie_gbps,
            )
        )
    return sorted(cards, key=lambda card: (card.link == "Ethernet", natural(card.name)))


def _device(files: Files, group: str, name: str) -> str | None:
    """Return the folder of the device behind /sys/class/GROUP/NAME; None of a virtual one."""
    target = files.target(f"{group}/{name}")
    if target is None or "/devices/virtual/" in f"/{target}":
        return None
    folder, _, last = target.rpartition(f"/{group.rpartition('/')[2]}/")
    return folder if last == name and folder else None


def _rdma(files: Files, name: str) -> tuple[str, str]:
    """Return kind of link and speed of the first port that is up."""
    folder = files.target(f"{_RDMA}/{name}") or ""
    ports = [f"{folder}/ports/{port}" for port in files.names(f"{folder}/ports")]
    if not ports:
        return "RDMA", ""
    up = [port for port in ports if "ACTIVE" in (files.text(f"{port}/state") or "")]
    port = (up or ports)[0]
    layer = files.text(f"{port}/link_layer") or "RDMA"
    link = {"Ethernet": "RoCE", "Unspecified": "RDMA"}.get(layer, layer)
    if not up and files.text(f"{port}/state"):
        return link, DOWN
    rate, _, unit = (files.text(f"{port}/rate") or "").partition(" ")  # 200 Gb/sec (4X HDR)
    return link, f"{rate} Gbit/s" if unit.startswith("Gb/sec") else ""


def _ethernet(files: Files, names: list[str]) -> tuple[str, str]:
    """Return link and speed of the fastest interface of a card."""
    folders = [files.target(f"{_NET}/{name}") or "" for name in names]
    link = "InfiniBand" if any(files.text(f"{folder}/type") == "32" for folder in folders) else "Ethernet"
    speeds = [files.number(f"{folder}/speed") or 0 for folder in folders]
    if max(speeds) > 0:  # virtual machines write -1 or refuse
        megabits = max(speeds)
        return link, f"{megabits / 1000:g} Gbit/s" if megabits >= 1000 else f"{megabits} Mbit/s"
    return link, DOWN if all(files.text(f"{folder}/operstate") == "down" for folder in folders) else ""
