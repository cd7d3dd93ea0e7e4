"""Network cards, and how other hosts find this one."""

from __future__ import annotations

import ipaddress

from commbench.doctor.finding import Finding, fail, note, ok, some, warn
from commbench.doctor.system import System

_NET = "/sys/class/net"
_IB = "/sys/class/infiniband"


def interfaces(system: System) -> Finding:
    cards, virtual, down = [], [], []
    for name in system.names(_NET):
        if name == "lo":
            continue
        folder = f"{_NET}/{name}"
        if system.text(f"{folder}/operstate") != "up":
            if system.exists(f"{folder}/device"):
                down.append(name)
        elif system.exists(f"{folder}/device") or system.exists(f"{folder}/bonding"):
            cards.append(f"{name} {_speed(system.text(f'{folder}/speed'))}")
        else:
            virtual.append(f"{name} (virtual)")
    value = some(cards + virtual, 8) + (f"; down: {some(down)}" if down else "")
    if not cards and not virtual:
        return note(
            f"none is up{f'; down: {some(down)}' if down else ''}", "only ranks on this machine can reach each other"
        )
    if len(cards) > 1 and not {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} & set(system.environ):
        return note(
            value,
            "over several hosts each library chooses an interface by rules of its own",
            "name it: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, UCX_NET_DEVICES",
        )
    return ok(value)


def _speed(text: str | None) -> str:
    megabits = int(text) if text and text.lstrip("-").isdigit() else -1
    if megabits <= 0:  # virtual machines and tunnels write -1 or refuse
        return "(speed unknown)"
    return f"{megabits / 1000:g} Gbit/s" if megabits >= 1000 else f"{megabits} Mbit/s"


def host_name(system: System) -> Finding:
    """Ask `getent`, as its time can be limited; a name server that does not answer takes long."""
    said = system.run("getent", "hosts", system.host)
    if not said:
        return warn(
            f"{system.host!r} has no address",
            "gloo and torchrun look up this name to listen on it; they wait, or fail",
            "add it to /etc/hosts, or name an interface: GLOO_SOCKET_IFNAME",
        )
    address = said.split()[0]
    here = {one for found in system.addresses().values() for one in found}
    if here and address not in here and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return fail(
            f"{system.host!r} is {address}, which no interface of this machine has ({some(sorted(here))})",
            "torchrun and gloo listen at that address: they hang until they give up, or talk to another machine",
            "put the right address into /etc/hosts, or give MASTER_ADDR and GLOO_SOCKET_IFNAME",
        )
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return note(
            f"{system.host!r} is {address}, this machine alone",
            "enough for one machine; ranks on other hosts could not reach this one",
            "over several hosts give its real address in /etc/hosts, or GLOO_SOCKET_IFNAME and MASTER_ADDR",
        )
    return ok(f"{system.host!r} is {address}")


def socket_interfaces(system: System) -> Finding | None:
    """Look whether the interfaces that variables name are there, by the grammar of each library; None: none does."""
    named = {name: system.environ.get(name, "") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    if not any(named.values()):
        return None
    there = sorted(name for name, found in system.addresses().items() if found)
    problems = []
    for variable, value in named.items():
        words = [word for word in value.split(",") if word]
        if variable.startswith("GLOO") and any(word[0] in "^=" for word in words):
            problems.append(f"{variable}={value}: gloo takes names alone, ^ and = are NCCL's")
        elif variable.startswith("GLOO"):
            problems += [f"{variable}={word}: there is no such interface with an address" for word in words
                         if word not in there]  # fmt: skip
        elif words and not _of_nccl(value, there):
            problems.append(f"{variable}={value} leaves no interface")
    if problems:
        return fail(
            "; ".join(problems),
            f"ranks then fail, or wait for each other; interfaces with an address: {some(there, 8)}",
            "gloo: GLOO_SOCKET_IFNAME=eth0,eth1; NCCL: prefixes, eth,ib; ^docker,lo all but those; =eth0 exactly",
        )
    return ok(", ".join(f"{variable}={value}" for variable, value in named.items() if value))


def _of_nccl(value: str, there: list[str]) -> list[str]:
    """Return the interfaces that NCCL_SOCKET_IFNAME leaves: prefixes, after ^ all others, after = whole names."""
    excluded = value.startswith("^")
    words = value.removeprefix("^")
    exact = words.startswith("=")
    names = [word for word in words.removeprefix("=").split(",") if word]
    return [
        name for name in there if any(name == word if exact else name.startswith(word) for word in names) != excluded
    ]


def infiniband(system: System) -> Finding | None:
    """Look at InfiniBand and RoCE; None without any: most machines have none."""
    active, inactive = [], []
    for device in system.names(_IB):
        for port in system.names(f"{_IB}/{device}/ports"):
            folder = f"{_IB}/{device}/ports/{port}"
            name = f"{device}:{port}"
            if "ACTIVE" in (system.text(f"{folder}/state") or ""):
                kind = "RoCE" if system.text(f"{folder}/link_layer") == "Ethernet" else "InfiniBand"
                active.append(f"{name} {kind} {system.text(f'{folder}/rate') or '(rate unknown)'}")
            else:
                inactive.append(name)
    if not active and not inactive:
        return None
    if inactive:
        return note(
            f"{some(active, 8) or 'no port is active'}; not active: {some(inactive)}",
            "a cable, a switch port or the subnet manager may be missing",
            "see ibstat",
        )
    return ok(some(active, 8))


def link_rates(system: System) -> Finding:
    """Say which rates a bound is computed with where the user declares none, for each transport that there is."""
    said, lacking, available = [], [], system.transports()
    for transport in ("gloo", "mpi", "nccl"):
        if available.get(transport, "unknown"):
            continue
        rates = system.link_rates(transport)
        words = [f"{_WHERE[link]} {rate.gbps:.4g} GB/s ({rate.source})" for link, rate in sorted(rates.items())]
        said += [f"{transport}: {', '.join(words)}"] if words else []
        lacking += [transport] if "inter" not in rates else []
    if not lacking:
        return ok("; ".join(said) or "no transport is there")
    return note(
        "; ".join([*said, f"none between nodes over {', '.join(lacking)}"]),
        "results over several nodes then have no bound",
        "say what a node's cards do: link_rate.inter=400gbit, or 8x400gbit",
    )


_WHERE = {"inter": "between nodes, all ranks of one,", "intra": "inside a node, each rank,"}


def gpu_direct(system: System) -> Finding | None:
    if not system.gpus.gpus or not system.names(_IB):
        return None
    if system.exists("/sys/module/nvidia_peermem") or system.exists("/sys/module/nv_peer_mem"):
        return ok("nvidia_peermem is loaded")
    return note(
        "nvidia_peermem is not loaded",
        "network cards then reach GPU memory by DMA-BUF, which needs the open kernel modules, or by way of the host",
        "sudo modprobe nvidia_peermem; NCCL_DEBUG=INFO says which way NCCL took",
    )
