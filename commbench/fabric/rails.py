"""The commands that make an emulated network of rails, as text for `ip -batch` and `tc -batch`. Pure.

Each rank is in a namespace of its own: with a card `net0` to the leaf switch of its place, which it shares with the
ranks of that place on all nodes, and `inside` to a switch of its node, as fast as memory is. Each leaf has one link to
the spine, `up0`, `up1`, .., over which all goes that is for a rank of another node and another place.
"""

from __future__ import annotations

from pathlib import Path

from commbench.emulated import Emulated
from commbench.fabric.network import CONTROL, DATA, address, control_address, hardware, shape

_INSIDE = "inside"
_SPINE = "spine"


def switch(fabric: Emulated, pids: list[int]) -> str:
    """Return the lines for `ip -batch` in the switch namespace; `pids[r]` is a process in rank r's namespace."""
    places, nodes = range(fabric.places), range(fabric.nodes)
    bridges = [*(f"leaf{place}" for place in places), *(f"node{node}" for node in nodes), _SPINE, CONTROL]
    lines = [f"link add {name} type bridge mcast_snooping 0" for name in bridges]
    lines += [f"link set {name} up" for name in bridges]
    for place in places:
        lines += [
            f"link add up{place} type veth peer name down{place}",
            f"link set up{place} master leaf{place} up",
            f"link set down{place} master {_SPINE} up",
        ]
    for rank, pid in enumerate(pids):
        node, place = divmod(rank, fabric.places)
        for number, (port, name, bridge) in enumerate(
            ((_port(rank), f"{DATA}0", f"leaf{place}"), (f"r{rank}i", _INSIDE, f"node{node}"))
        ):
            peer = f"peer name {name} address {hardware(rank, number)} netns {pid}"
            lines += [f"link add {port} type veth {peer}", f"link set {port} master {bridge} up"]
        lines += [
            f"link add r{rank}c type veth peer name {CONTROL} netns {pid}",
            f"link set r{rank}c master {CONTROL} up",
        ]
    return "\n".join(lines) + "\n"


def switch_shaping(fabric: Emulated) -> str:
    """Return the lines for `tc -batch` in the switch namespace: what comes to a rank, and both ways of the spine."""
    to_ranks = [shape(fabric, _port(rank), fabric.link) for rank in range(fabric.hosts)]
    spine = [
        shape(fabric, f"{way}{place}", fabric.spine_rate) for place in range(fabric.places) for way in ("up", "down")
    ]
    return "".join([*to_ranks, *spine])


def node(fabric: Emulated, me: int) -> str:
    """Return the lines for `ip -batch` in rank `me`'s namespace."""
    lines = ["link set lo up", f"addr add {control_address(me)}/16 dev {CONTROL}", f"link set {CONTROL} up"]
    lines += [f"addr add {address(me)}/32 dev {DATA}0", f"link set {DATA}0 up", f"link set {_INSIDE} up"]
    for rank in range(fabric.hosts):
        if rank != me:
            here = rank // fabric.places == me // fabric.places
            device, number = (_INSIDE, 1) if here else (f"{DATA}0", 0)
            lines.append(f"neigh add {address(rank)} lladdr {hardware(rank, number)} dev {device} nud permanent")
            lines.append(f"route add {address(rank)}/32 src {address(me)} dev {device}")
    return "\n".join(lines) + "\n"


def node_shaping(fabric: Emulated, me: int) -> str:
    """Return the lines for `tc -batch` in rank `me`'s namespace."""
    return shape(fabric, f"{DATA}0", fabric.link)


def spine_bytes(fabric: Emulated, devices: Path) -> float:
    """Return the bytes that all leaves have sent to the spine: `devices` is /proc/PID/net/dev of the switch."""
    names = {f"up{place}" for place in range(fabric.places)}
    lines = (line.partition(":") for line in devices.read_text().splitlines()[2:])
    return sum(float(fields.split()[8]) for name, _, fields in lines if name.strip() in names)


def _port(rank: int) -> str:
    return f"r{rank}d"
