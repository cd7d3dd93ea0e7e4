"""Machines like real ones, as what `commbench topo --record` writes: python tests/data/machines/make.py

Each is one JSON file, path -> content, as a folder would have hundreds; `tests.support.machines.unpack` makes one.
Names, bus ids and links are modelled on such machines and not copied from one.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

HERE = Path(__file__).parent
GI = 1 << 20  # in kB
NVIDIA, MELLANOX, INTEL = "0x10de", "0x15b3", "0x8086"


class Tree(dict[str, str]):
    """Files of sysfs. Links are files of text, as in a recording."""

    def numa(self, cpus: list[str], memory_kb: int, distances: list[str]) -> None:
        self["sys/devices/system/cpu/online"] = f"0-{max(int(c) for c in ','.join(cpus).replace('-', ',').split(','))}"
        for node, (of, to) in enumerate(zip(cpus, distances, strict=True)):
            folder = f"sys/devices/system/node/node{node}"
            self[f"{folder}/cpulist"] = of
            self[f"{folder}/distance"] = to
            self[f"{folder}/meminfo"] = f"Node {node} MemTotal:       {memory_kb} kB"

    def pci(self, path: str, ids: str, node: int, cpus: str) -> str:
        """A function; `path` is from sys/devices down, `ids` are class, vendor and device."""
        folder = f"sys/devices/{path}"
        kind, vendor, device = ids.split()
        about = {"vendor": vendor, "device": device, "numa_node": str(node), "local_cpulist": cpus}
        self |= {f"{folder}/{name}": text for name, text in about.items()}
        if kind.startswith("0x03"):
            self[f"{folder}/class"] = kind
            self[f"sys/bus/pci/devices/{path.rpartition('/')[2]}"] = f"../../../devices/{path}"
        return folder

    def rdma(self, name: str, folder: str, rate: str, layer: str = "InfiniBand") -> None:
        self[f"sys/class/infiniband/{name}"] = f"../../../{folder}/infiniband/{name}"
        port = f"{folder}/infiniband/{name}/ports/1"
        self |= {f"{port}/state": "4: ACTIVE", f"{port}/rate": rate, f"{port}/link_layer": layer}

    def net(self, name: str, folder: str, megabits: int, kind: int = 1, state: str = "up") -> None:
        self[f"sys/class/net/{name}"] = f"../../../{folder}/net/{name}"
        device = f"{folder}/net/{name}"
        self |= {f"{device}/operstate": state, f"{device}/speed": str(megabits), f"{device}/type": str(kind)}

    def driver(self, model: str, gpus: list[str], links: int) -> None:
        """All GPUs joined to all others, through NVSwitch."""
        nvlinks: dict[str, dict[str, int]] = {}
        for first, second in itertools.combinations(gpus, 2):
            nvlinks.setdefault(first, {})[second] = links
        listed = [{"pci_bus_id": gpu, "model": model, "numa_node": None} for gpu in gpus]
        self["gpus.json"] = json.dumps({"gpus": listed, "nvlinks": nvlinks})


def ndv4() -> Tree:
    """Azure NDv4: a virtual machine, where every GPU and card has a host bridge of its own, and Hyper-V tells the node.

    Pairs of GPUs are near nodes 1, 0, 3, 2: ranks in the order of nodes are all misplaced.
    """
    tree = Tree()
    cpus = [f"{24 * node}-{24 * node + 23}" for node in range(4)]
    tree.numa(cpus, 221 * GI, ["10 12 32 32", "12 10 32 32", "32 32 10 12", "32 32 12 10"])
    bus = "LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00/VMBUS:00"
    gpus = [f"{domain}:00:00.0" for domain in ("0001", "0002", "0003", "0004", "000b", "000c", "000d", "000e")]
    for index, (gpu, node) in enumerate(zip(gpus, (1, 1, 0, 0, 3, 3, 2, 2), strict=True)):
        guid = f"4750550{index}-0001-0000-3130-444532304235"
        tree.pci(f"{bus}/{guid}/pci{gpu[:7]}/{gpu}", f"0x030200 {NVIDIA} 0x20b0", node, cpus[node])
        guid, card = f"0000010{index + 1}-1cf0-4a1b-8bb8-27ea8ea49123", f"010{index + 1}:00:00.0"
        folder = tree.pci(f"{bus}/{guid}/pci{card[:7]}/{card}", f"0x020700 {MELLANOX} 0x101c", node, cpus[node])
        tree.rdma(f"mlx5_{index}", folder, "200 Gb/sec (4X HDR)")
        tree.net(f"ib{index}", folder, 200000, kind=32)
    tree.net("eth0", f"sys/devices/{bus}/000d3a11-2233-000d-3a11-2233000d3a11", 50000)
    tree.driver("NVIDIA A100-SXM4-40GB", gpus, 12)
    return tree


def dgx() -> Tree:
    """DGX H100: a PCIe switch for each GPU and its InfiniBand card; a storage card of two ports; Ethernet on board."""
    tree = Tree()
    cpus = ["0-55,112-167", "56-111,168-223"]
    tree.numa(cpus, 1007 * GI, ["10 21", "21 10"])
    cards = (0x18, 0x40, 0x4F, 0x5E, 0x9A, 0xC0, 0xCE, 0xDC)
    gpus = [f"0000:{bus:02x}:00.0" for bus in (0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF)]
    for index, (card, gpu) in enumerate(zip(cards, gpus, strict=True)):
        node = index // 4
        switch = f"pci0000:{card - 3:02x}/0000:{card - 3:02x}:01.0/0000:{card - 2:02x}:00.0"
        name = f"0000:{card:02x}:00.0"
        folder = tree.pci(f"{switch}/0000:{card - 1:02x}:00.0/{name}", f"0x020700 {MELLANOX} 0x1021", node, cpus[node])
        tree.rdma(f"mlx5_{index}", folder, "400 Gb/sec (4X NDR)")
        tree.net(f"ibp{card}s0", folder, 400000, kind=32)
        tree.pci(f"{switch}/0000:{card - 1:02x}:02.0/{gpu}", f"0x030200 {NVIDIA} 0x2330", node, cpus[node])
    for port, state in enumerate(("up", "down")):
        path = f"pci0000:26/0000:26:01.0/0000:29:00.{port}"
        folder = tree.pci(path, f"0x020000 {MELLANOX} 0x1021", 0, cpus[0])
        tree.rdma(f"mlx5_{8 + port}", folder, "200 Gb/sec (4X HDR)" if port == 0 else "40 Gb/sec (4X QDR)", "Ethernet")
        tree.net(f"ens6f{port}np{port}", folder, 200000 if port == 0 else -1, state=state)
    tree[f"{folder}/infiniband/mlx5_9/ports/1/state"] = "1: DOWN"
    folder = tree.pci("pci0000:00/0000:00:1c.4/0000:0b:00.0", f"0x020000 {INTEL} 0x1563", 0, cpus[0])
    tree.net("eno3", folder, 10000)
    tree.driver("NVIDIA H100 80GB HBM3", gpus, 18)
    return tree


def pc() -> Tree:
    """A PC: one NUMA node, one GPU whose driver is not loaded, and a kernel that does not say what is near what."""
    tree = Tree()
    tree.numa(["0-15"], 62 * GI, ["10"])
    tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0", f"0x030000 {NVIDIA} 0x2684", -1, "0-15")
    tree.net("enp5s0", tree.pci("pci0000:00/0000:00:1c.0/0000:05:00.0", f"0x020000 {INTEL} 0x125c", -1, "0-15"), 2500)
    return tree


if __name__ == "__main__":
    for make in (ndv4, dgx, pc):
        (HERE / f"{make.__name__}.json").write_text(json.dumps(make(), indent=0, sort_keys=True) + "\n")
