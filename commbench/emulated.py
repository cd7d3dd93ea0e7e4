"""Emulated: a cluster of network namespaces on one Linux machine, as a recipe describes it.

Each node has one link to each spine, of rate `link` in both directions. Every packet is charged `message_overhead`
bytes more than it has: that stands for the cost of a message. A second, unshaped link carries rendezvous and votes.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum

from commbench.errors import UsageError


class Fabric(StrEnum):
    """What is between the nodes of a layout."""

    NONE = "none"  # there is one node
    DECLARED = "declared"  # nothing: one machine stands for several, all messages stay in it
    REAL = "real"  # a network: each node is a host of its own
    VIRTUAL = "virtual"  # NCCL's network transport inside one machine, of which it believes that it is several
    EMULATED = "emulated"  # shaped links between network namespaces of one machine

    @staticmethod
    def between(nodes: int, machines: int, *, emulated: bool = False, virtual: bool = False) -> Fabric:
        """Return what is between the nodes of a layout whose ranks are on so many machines: the one who decides."""
        if nodes == 1:
            return Fabric.NONE
        if emulated:
            return Fabric.EMULATED
        if machines >= nodes:
            return Fabric.REAL
        return Fabric.VIRTUAL if virtual else Fabric.DECLARED


# What nodes are that are no machines of their own. Those of an emulated network say so by its settings.
NOMINAL = {Fabric.DECLARED.value: "declared on one machine", Fabric.VIRTUAL.value: "virtual hosts of one machine"}


def network_note(fabric: str) -> str:
    """Return what has to be said beside numbers of nodes that are no machines of their own; "" where they are."""
    return f"nodes are {NOMINAL[fabric]}: nothing here is about your network" if fabric in NOMINAL else ""


RAILS = ("spine_rate", "places")  # fields that fabrics without rails do not have
ROUTINGS = ("static", "ecmp", "spray")
MOST_NODES, MOST_SPINES, MOST_OVERHEAD = 64, 8, 1_000_000

_MOST_SLOWDOWN = 1000.0
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)")
_SLOW_LINK = re.compile(r"node(\d+):(\d+(?:\.\d+)?)(?::(in|out|both))?")
_SLOWEST, _FASTEST = 1e6, 400e9  # below, a packet takes a second; above, tc counts in whole nanoseconds per packet
PACKET_BYTES = 65_536  # the largest that the kernel hands to a link at once; it stands for many frames
_HEADERS = 1.07  # a packet as a link counts it: with the headers of all frames that it stands for
_TIMER_S = 200e-6  # a link may wake so late; it shall have saved up enough to make up for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulated:
    """What is between `nodes` nodes."""

    nodes: int
    link: str  # rate of each link in each direction, as tc writes it: 1gbit, 200mbit
    message_overhead: int = 0  # bytes that a packet is charged for above its own
    spines: int = 1
    routing: str = "static"
    intra_link: str = ""  # rate at which the ranks of a node exchange, all together; "": as fast as memory is
    slow_link: str = ""  # a defect: the node whose links are slower, how many times, and in which direction if in one
    # Rails: each rank has a card of its own, of rate `link`, to the leaf switch that all ranks of its place share, and
    # each leaf has a link of rate `spine_rate` to one spine. "": ranks of a node share its links.
    spine_rate: str = ""
    places: int = 1  # ranks of a node, where there are rails

    @property
    def rails(self) -> bool:
        return bool(self.spine_rate)

    @property
    def hosts(self) -> int:
        """Network namespaces: one for each node, with rails one for each rank."""
        return self.nodes * (self.places if self.rails else 1)

    def host(self, rank: int, ranks_per_node: int) -> int:
        """Return which of them a rank is in."""
        return rank if self.rails else rank // ranks_per_node

    @property
    def gbps(self) -> float:
        """GB/s of one link in one direction."""
        return parse_rate(self.link) / 8e9

    @property
    def burst_bytes(self) -> int:
        """What a link that has rested sends at once: a token bucket must hold the largest packet with its charge."""
        return max(int(PACKET_BYTES * _HEADERS) + self.message_overhead, int(self.gbps * 1e9 * _TIMER_S))

    @property
    def intra_gbps(self) -> float:
        return parse_rate(self.intra_link, "intra_link") / 8e9

    @property
    def intra_burst_bytes(self) -> int:
        return max(int(PACKET_BYTES * _HEADERS), int(self.intra_gbps * 1e9 * _TIMER_S))

    def slowdown(self, node: int, direction: str) -> float:
        """How many times slower node `node`'s links are in one direction: `out` or `in`."""
        if not self.slow_link:
            return 1.0
        slow, factor, only = parse_slow_link(self.slow_link)
        return factor if slow == node and only in ("both", direction) else 1.0

    def __str__(self) -> str:
        """`1gbit links, 30000 B per packet, 2 spines, spray`."""
        words = [f"{self.link} links"]
        words += [f"{self.message_overhead} B per packet"] if self.message_overhead else []
        words += [f"{self.spines} spines, {self.routing}"] if self.spines > 1 else []
        words += [f"{self.intra_link} inside nodes"] if self.intra_link else []
        words += [f"slow link {self.slow_link}"] if self.slow_link else []
        words += [f"rails, {self.spine_rate} from each to the spine"] if self.rails else []
        return ", ".join(words)

    def to_json(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if self.rails or key not in RAILS})

    @staticmethod
    def from_json(text: str) -> Emulated:
        return Emulated(**json.loads(text))


def parse_rate(text: str, key: str = "link") -> float:
    """Bits per second of `1gbit`, `200mbit`, `500kbit`. Raises `UsageError`."""
    match = _RATE.fullmatch(str(text).lower())
    rate = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not _SLOWEST <= rate <= _FASTEST:
        raise UsageError(
            f"{key} is {text!r}", hint=f"a rate from 1mbit to 400gbit, written as tc does: {key}=1gbit, {key}=200mbit"
        )
    return rate


def parse_slow_link(text: str) -> tuple[int, float, str]:
    """Node, factor and direction of `node2:3`, `node2:3:out`. Raises `UsageError`."""
    match = _SLOW_LINK.fullmatch(str(text).lower())
    if not match or not 1 <= float(match[2]) <= _MOST_SLOWDOWN:
        raise UsageError(
            f"slow_link is {text!r}",
            hint=f"node, how many times slower (1 to {_MOST_SLOWDOWN:.0f}), and in or out if not both: "
            "slow_link=node2:3, slow_link=node2:3:out",
        )
    return int(match[1]), float(match[2]), match[3] or "both"
