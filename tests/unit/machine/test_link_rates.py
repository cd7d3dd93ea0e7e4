"""What a machine says of its links, for each transport."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from commbench.layout import Layout
from commbench.links import LinkRate
from commbench.machine import link_rates, sysfs
from commbench.machine.gpus import Gpu
from commbench.machine.link_rates import interfaces, nominal
from commbench.machine.machine import Machine, NumaNode, NvLinks, PciDevice
from commbench.measure import readback
from commbench.records import Fabric
from tests.support.machines import unpack


def card(name: str, link: str, speed: str, *netdevs: str, pcie: float | None = None, at: str = "") -> PciDevice:
    return PciDevice(kind="nic", name=name, link=link, speed=speed, netdevs=netdevs, pcie_gbps=pcie,
                     pci_path=(at, name) if at else (), numa_node=0)  # fmt: skip


def gpu(index: int, *, pcie: float | None = 63.0, at: str = "") -> PciDevice:
    return PciDevice(kind="gpu", name=f"GPU{index}", pci_bus_id=f"0000:0{index}:00.0", pcie_gbps=pcie,
                     pci_path=(at, f"0000:0{index}:00.0") if at else (), numa_node=0)  # fmt: skip


def machine(gpus: list[PciDevice], nics: list[PciDevice], *linked: tuple[int, int]) -> Machine:
    links = tuple(NvLinks(first=f"GPU{a}", second=f"GPU{b}", count=18) for a, b in linked)
    return Machine(cpus=(0,), nodes=(NumaNode(index=0, cpus=(0,)),), gpus=tuple(gpus), nics=tuple(nics), nvlinks=links)


def lanes(count: int) -> list[Gpu]:
    return [Gpu(name="H200", pci_bus_id=f"0000:0{i}:00.0", nvlinks=18, nvlink_gbps=26.5625) for i in range(count)]


RAILS = [card(f"mlx5_{i}", "InfiniBand", "400 Gbit/s", pcie=63.0, at=f"pci{i}") for i in range(2)]
STORAGE = card("mlx5_9", "InfiniBand", "200 Gbit/s", at="pci9")
ETHERNET = card("eth0", "Ethernet", "25 Gbit/s", "eth0")
TWO = [gpu(i, at=f"pci{i}") for i in range(2)]


def test_nccl_takes_the_cards_next_to_its_gpus() -> None:
    whole = machine(TWO, [*RAILS, STORAGE, ETHERNET], (0, 1))
    rates = nominal(whole, "nccl", {}, found=lanes(2))
    assert rates["inter"] == LinkRate(gbps=100.0, of="node", kind="nominal", source="mlx5_0, mlx5_1")
    assert rates["intra"] == LinkRate(gbps=478.125, kind="nominal", source="18 NVLinks")
    assert nominal(whole, "nccl", {}, visible=["0000:01:00.0"], found=lanes(2)) == {
        "inter": LinkRate(gbps=50.0, of="node", kind="nominal", source="mlx5_1")
    }, "one rank alone has nobody inside its node"


@pytest.mark.parametrize(
    ("environ", "source", "gbps"),
    [
        ({"NCCL_IB_HCA": "mlx5_9"}, "mlx5_9", 25.0),
        ({"NCCL_IB_HCA": "=mlx5_0:1,mlx5_9:1"}, "mlx5_0, mlx5_9", 75.0),
        ({"NCCL_IB_HCA": "^mlx5_9"}, "mlx5_0, mlx5_1", 100.0),
        ({"NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "eth"}, "eth0", 3.125),
    ],
)
def test_the_environment_names_the_cards(environ: dict[str, str], source: str, gbps: float) -> None:
    found = nominal(machine(TWO, [*RAILS, STORAGE, ETHERNET]), "nccl", environ)["inter"]
    assert (found.source, found.gbps) == (source, gbps)


def test_a_slot_slower_than_its_port_is_the_rate() -> None:
    slow = dataclasses.replace(RAILS[0], pcie_gbps=31.5)
    assert nominal(machine([], [slow, RAILS[1]]), "mpi", {})["inter"].gbps == 81.5


def test_gloo_has_its_interface_and_no_rate_of_memory() -> None:
    whole = machine([], [*RAILS, ETHERNET])
    assert nominal(whole, "gloo", {}, used=["eth0"]) == {
        "inter": LinkRate(gbps=3.125, of="node", kind="nominal", source="eth0")
    }
    assert nominal(whole, "gloo", {}, used=["docker0"]) == {}


def test_what_is_not_told_gives_no_rate() -> None:
    silent = card("ens5", "Ethernet", "", "ens5")
    assert nominal(machine([], [silent]), "mpi", {}) == {} == nominal(machine([], []), "mpi", {})
    assert nominal(machine([], [silent, ETHERNET]), "mpi", {}) == {}, "the sum would be too low"
    assert nominal(machine([], [dataclasses.replace(silent, speed="down"), ETHERNET]), "mpi", {})["inter"].gbps == 3.125


def test_gpus_without_nvlink_between_all_have_pcie_or_nothing() -> None:
    bare = [Gpu(name="L40S", pci_bus_id=f"0000:0{i}:00.0") for i in range(2)]
    assert nominal(machine(TWO, []), "nccl", {}, found=bare) == {
        "intra": LinkRate(gbps=63.0, kind="nominal", source="PCIe")
    }
    assert nominal(machine([TWO[0], gpu(1, pcie=None)], []), "nccl", {}, found=bare) == {}
    four = [gpu(i) for i in range(4)]
    assert nominal(machine(four, [], (0, 1), (2, 3)), "nccl", {}, found=lanes(4)) == {}, "NVLink and PCIe together"


def test_a_bond_is_what_it_is_made_of(tmp_path: Path) -> None:
    for above, below in (("bond0.7", "bond0"), ("bond0", "eth0"), ("bond0", "eth1")):
        (tmp_path / above).mkdir(exist_ok=True)
        (tmp_path / above / f"lower_{below}").touch()
    assert interfaces({"GLOO_SOCKET_IFNAME": "bond0.7"}, tmp_path) == {"eth0", "eth1"}
    assert interfaces({"GLOO_SOCKET_IFNAME": "eth3"}, tmp_path) == {"eth3"}


@pytest.mark.parametrize(
    ("files", "gbps"),
    [
        ({"max_link_speed": "32.0 GT/s PCIe", "current_link_width": "16"}, 63.0),
        ({"max_link_speed": "16.0 GT/s PCIe", "current_link_width": "8"}, 15.75),
        ({"max_link_speed": "8 GT/s", "current_link_width": "16"}, 15.75),
        ({"max_link_speed": "32.0 GT/s PCIe", "current_link_width": "16", "../max_link_speed": "16.0 GT/s PCIe"}, 31.5),
        ({"max_link_speed": "Unknown", "current_link_width": "16"}, None),
        ({"max_link_speed": "32.0 GT/s PCIe", "current_link_width": "0"}, None),
        ({}, None),
    ],
)
def test_pcie_rate_of_a_recorded_card(files: dict[str, str], gbps: float | None, tmp_path: Path) -> None:
    bridge, place = "sys/devices/pci0000:00/0000:00:01.0", "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    tree = {"sys/devices/system/cpu/online": "0", "sys/class/net/eth0": f"../../../{place}/net/eth0",
            f"{place}/net/eth0/speed": "100000", f"{place}/net/eth0/operstate": "up"}  # fmt: skip
    tree |= {
        f"{bridge}/{name[3:]}" if name.startswith("../") else f"{place}/{name}": text for name, text in files.items()
    }
    (nic,) = sysfs.read(unpack(tree, tmp_path)).nics
    assert nic.pcie_gbps == (gbps and pytest.approx(gbps, rel=1e-3)) and nic.speed == "100 Gbit/s"


class Ranks:
    """A transport of two nodes, of which this is rank 0."""

    name = "nccl"
    rank = 0

    def __init__(self, other: list[float], **measured: LinkRate) -> None:
        self._other, self._measured = other, measured

    def links(self) -> dict[str, LinkRate]:
        return self._measured

    def all_gather(self, values: list[float]) -> Any:
        idle = [0.0] * len(values)
        return np.array([values, idle, [*self._other, *idle][: len(values)], idle])


@pytest.mark.parametrize(
    ("between", "other", "measured", "expected"),
    [
        (Fabric.REAL, [450.0, 200.0], {}, {"intra": (450.0, "nominal"), "inter": (200.0, "nominal")}),
        (Fabric.REAL, [0.0, 800.0], {}, {"inter": (400.0, "nominal")}),
        (Fabric.REAL, [478.0, 400.0], {"intra": LinkRate(gbps=391.0, kind="measured")},
         {"intra": (391.0, "measured"), "inter": (400.0, "nominal")}),
        (Fabric.DECLARED, [478.0, 400.0], {}, {"intra": (478.0, "nominal")}),
        (Fabric.VIRTUAL, [478.0, 400.0], {}, {}),
    ],
)  # fmt: skip
def test_of_all_machines_the_slowest_counts(
    between: Fabric, other: list[float], measured: dict[str, LinkRate], expected: dict[str, tuple[float, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And what was measured comes before what machines say; nothing passes a card between declared nodes."""
    mine = {"intra": LinkRate(gbps=478.0, kind="nominal"), "inter": LinkRate(gbps=400.0, of="node", kind="nominal")}
    monkeypatch.setattr(link_rates, "here", lambda transport, ranks: mine)
    job = cast(Any, SimpleNamespace(setup=SimpleNamespace(emulated=None, layout=Layout(2, 2))))
    found = readback.links_of(job, cast(Any, Ranks(other, **measured)), between) or {}
    assert {link: (rate.gbps, rate.kind) for link, rate in found.items()} == expected


def test_this_machine_never_raises() -> None:
    for transport in ("gloo", "mpi", "nccl", "scripted"):
        assert all(rate.kind == "nominal" for rate in link_rates.here(transport, 2).values())
