"""The commands that make an emulated network, as text for `ip -batch`, `tc -batch` and `nft -f`. Pure.

The *switch* namespace holds a bridge for each spine and one for control; each *node* namespace has an interface `net0`,
`net1`, ... to each spine and one called `control`. All of them are in namespaces without names, so nothing here can
clash with another emulation or with the machine's own network.
"""

from __future__ import annotations

from commbench.emulated import Emulated

CONTROL = "control"
DATA = "net"  # and the number of the spine
INTERFACES = f"{DATA}0", CONTROL  # whose addresses data, and votes, are sent to
_DATA_ADDRESSES = "10.77.0.0/16"
_MARK = 100  # of packets sprayed to spine 0; the others follow
_SMALL_PACKET = 200  # bytes; with options an acknowledgement has up to 80
_QUEUE_S = 2.0  # a queue that long drops packets, as TCP needs it to; windows stay below
_LONGEST_QUEUE = 1 << 30  # bytes; tc has 32 bits for it


def address(node: int) -> str:
    """Return where a node's data go to."""
    return f"10.77.{node // 250}.{node % 250 + 1}"


def control_address(node: int) -> str:
    return f"10.78.{node // 250}.{node % 250 + 1}"


def hardware(node: int, spine: int) -> str:
    """Return the address of a node's card."""
    return f"02:77:00:{node:02x}:00:{spine:02x}"


def switch(fabric: Emulated, pids: list[int]) -> str:
    """Return the lines for `ip -batch` in the switch namespace; `pids[n]` is a process in node n's namespace."""
    lines = [f"link add {name} type bridge mcast_snooping 0" for name in (*_spines(fabric), CONTROL)]
    lines += [f"link set {name} up" for name in (*_spines(fabric), CONTROL)]
    for node, pid in enumerate(pids):
        for spine, name in enumerate(_spines(fabric)):
            peer = f"peer name {DATA}{spine} address {hardware(node, spine)} netns {pid}"
            lines.append(f"link add {_port(node, spine)} type veth {peer}")
            lines.append(f"link set {_port(node, spine)} master {name} up")
        lines.append(f"link add n{node}c type veth peer name {CONTROL} netns {pid}")
        lines.append(f"link set n{node}c master {CONTROL} up")
    return "\n".join(lines) + "\n"


def switch_shaping(fabric: Emulated) -> str:
    """Return the lines for `tc -batch` in the switch namespace: a node receives no faster than it sends."""
    return "".join(
        _shape(fabric, _port(node, spine), fabric.slowdown(node, "in"))
        for node in range(fabric.nodes)
        for spine in range(fabric.spines)
    )


def node(fabric: Emulated, me: int) -> str:
    """Return the lines for `ip -batch` in node `me`'s namespace."""
    others = [n for n in range(fabric.nodes) if n != me]
    spines = range(fabric.spines)
    # Over several spines segments overtake each other: an acknowledgement that waits for company holds up all.
    quick = " quickack 1" if fabric.spines > 1 else ""
    lines = ["link set lo up", f"addr add {control_address(me)}/16 dev {CONTROL}", f"link set {CONTROL} up"]
    lines.append(f"addr add {address(me)}/32 dev {DATA}0")
    lines += [f"link set {DATA}{spine} up" for spine in spines]
    # Neighbours are known for good: address resolution would be traffic, charged and in the middle of a measurement.
    lines += [
        f"neigh add {address(n)} lladdr {hardware(n, spine)} dev {DATA}{spine} nud permanent"
        for n in others
        for spine in spines
    ]
    for n in others:
        hops = " ".join(f"nexthop dev {DATA}{spine}" for spine in spines)
        way = hops if fabric.routing == "ecmp" and fabric.spines > 1 else f"dev {DATA}{_static(fabric, n)}"
        lines.append(f"route add {address(n)}/32 src {address(me)}{quick} {way}")
    if sprays(fabric):
        for spine in spines:
            lines.append(f"rule add fwmark {_MARK + spine} table {_MARK + spine}")
            lines += [
                f"route add {address(n)}/32 src {address(me)} dev {DATA}{spine} table {_MARK + spine}{quick}"
                for n in others
            ]
    return "\n".join(lines) + "\n"


def node_shaping(fabric: Emulated, me: int) -> str:
    """Return the lines for `tc -batch` in node `me`'s namespace."""
    lines = [_shape(fabric, f"{DATA}{spine}", fabric.slowdown(me, "out")) for spine in range(fabric.spines)]
    if fabric.intra_link:
        # Ranks of a node reach each other over the loopback device, and for votes: what is in no class is not held up.
        burst = fabric.intra_burst_bytes
        lines += [
            "qdisc add dev lo root handle 1: htb\n",
            f"class add dev lo parent 1: classid 1:1 htb rate {fabric.intra_link} burst {burst} cburst {burst}\n",
            f"filter add dev lo parent 1: protocol ip u32 match ip dst {_DATA_ADDRESSES} flowid 1:1\n",
        ]
    return "".join(lines)


def sprays(fabric: Emulated) -> bool:
    return fabric.routing == "spray" and fabric.spines > 1


def spray(fabric: Emulated, me: int) -> str:
    """Return the lines for `nft -f -` in node `me`'s namespace.

    To each destination, packet after packet takes the next spine.

    Acknowledgements are counted apart: between large packets they would make the turns of those uneven.
    """
    turn = f"meta mark set numgen inc mod {fabric.spines} offset {_MARK}"
    rules = [
        f"    ip daddr {address(n)} meta length {which} {_SMALL_PACKET} {turn}\n"
        for n in range(fabric.nodes)
        if n != me
        for which in (">", "<=")
    ]
    head = "table ip spray {\n  chain output {\n    type route hook output priority mangle; policy accept;\n"
    return head + "".join(rules) + "  }\n}\n"


def settings(fabric: Emulated) -> dict[str, str]:
    """Return what each node's kernel must be set to, by path below /proc/sys/net."""
    if fabric.spines == 1:
        return {}
    needed = {f"ipv4/conf/{name}/rp_filter": "0" for name in ("all", "default")}
    needed["ipv4/tcp_reordering"] = "127"  # packets that may be overtaken before TCP takes one for lost
    if fabric.routing == "ecmp":
        needed["ipv4/fib_multipath_hash_policy"] = "1"  # by connection
    return needed


def _static(fabric: Emulated, destination: int) -> int:
    """Return the spine to a destination: its number modulo the spines, as fat-tree routing has it (D-mod-K)."""
    return destination % fabric.spines


def _spines(fabric: Emulated) -> list[str]:
    return [f"spine{spine}" for spine in range(fabric.spines)]


def _port(node: int, spine: int) -> str:
    return f"n{node}s{spine}"


def _shape(fabric: Emulated, device: str, slowdown: float) -> str:
    return shape(fabric, device, fabric.link if slowdown == 1 else f"{int(fabric.gbps * 8e9 / slowdown)}bit")


def shape(fabric: Emulated, device: str, rate: str) -> str:
    """Return the line for `tc -batch` that gives a device this rate, and packets their charge."""
    charge = f"stab overhead {fabric.message_overhead} " if fabric.message_overhead else ""
    limit = min(int(fabric.gbps * 1e9 * _QUEUE_S), _LONGEST_QUEUE) + fabric.burst_bytes
    rate = f"tbf rate {rate} burst {fabric.burst_bytes} limit {limit}"
    return f"qdisc add dev {device} root handle 1: {charge}{rate}\n"
