"""The bound beside each bandwidth: the least time that the links allow for what must travel."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from commbench.errors import UsageError
from commbench.layout import LINK_CLASSES, Layout, LinkClass
from commbench.spec import Send

Owner = Literal["rank", "node"]
# Who says a rate: the machine of its cards, the user (or an emulated network), or a measurement of this suite. "":
# run folders of versions that did not say. A bound that takes two rates has the label that comes first here.
RateKind = Literal["", "nominal", "declared", "measured"]
RATE_KINDS: tuple[RateKind, ...] = ("", "nominal", "declared", "measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRate:
    """What one class of link does in each direction. Of a node: its ranks share it, as they share a NIC."""

    gbps: float
    of: Owner = "rank"
    kind: RateKind = ""
    source: str = ""  # whose rate it is, in words: `mlx5_0, mlx5_1`
    burst_bytes: int = 0  # what it passes at once after a rest
    packet_bytes: int = 0  # the largest packet, and what each is charged beside its bytes; 0: no packets to count
    packet_overhead: int = 0

    def charged(self, nbytes: int) -> int:
        """Bytes that a message of `nbytes` takes of the rate, at the least."""
        return nbytes + (-(-nbytes // self.packet_bytes) * self.packet_overhead if self.packet_bytes else 0)


class Need(NamedTuple):
    """`nbytes` that some rank, or some node, must move in one direction over `links` together."""

    nbytes: float
    links: tuple[LinkClass, ...]
    of: Owner = "rank"


class LeastTime(NamedTuple):
    """Microseconds below which something cannot be done, and who says the rates that say so."""

    us: float
    kind: RateKind


def least_time(
    needs: Iterable[Need], links: Mapping[str, LinkRate], layout: Layout, *, share: float = 1.0
) -> LeastTime | None:
    """Return the least time in which the needs can be met; None where no link with a known rate bounds them.

    `share` is the part of what a node's ranks share that this group has, others using the rest at the same time.
    """
    found = [LeastTime(0.0, "")]
    for need in needs:
        if not all(link in links for link in need.links):
            continue  # a rate that nobody knows bounds nothing
        rates = [links[link] for link in need.links]
        gbps = sum(_capacity(rate, need.of, layout, share) for rate in rates)
        us = (need.nbytes - sum(rate.burst_bytes for rate in rates)) / gbps / 1e3
        found.append(LeastTime(us, min((rate.kind for rate in rates), key=RATE_KINDS.index)))
    least = max(found, key=lambda one: one.us)
    return least if least.us > 0 else None


def _capacity(rate: LinkRate, of: Owner, layout: Layout, share: float) -> float:
    """GB/s that a rank, or the ranks of this group on one node together, can have."""
    if rate.of == "node":
        return rate.gbps * (share if of == "node" else 1.0)  # one rank alone may have all of it
    return rate.gbps * (layout.ranks_per_node if of == "node" else 1)


def of_messages(
    sends: Iterable[Send], layout: Layout, charged: Callable[[LinkClass, int], int] | None = None
) -> list[Need]:
    """Return what data that each belong to one receiver need.

    That is the busiest rank and node, in each direction, over each class of link.

    For a network-bound all-to-all on N nodes of m ranks this gives busbw <= B (n - 1) / (n - m), the ceiling derived
    in docs/reference/metrics.md. `charged(link, nbytes)` is what a message takes of its link; without it, its bytes.
    """
    load: Counter[tuple[str, Owner, int, LinkClass]] = Counter()
    for src, dst, nbytes in sends:
        link = layout.link(src, dst)
        taken = charged(link, nbytes) if charged else nbytes
        load["out", "rank", src, link] += taken
        load["in", "rank", dst, link] += taken
        load["out", "node", layout.node(src), link] += taken
        load["in", "node", layout.node(dst), link] += taken
    busiest: dict[tuple[Owner, LinkClass], int] = {}
    for (_, of, _, link), nbytes in load.items():
        busiest[of, link] = max(busiest.get((of, link), 0), nbytes)
    return [Need(nbytes, (link,), of) for (of, link), nbytes in busiest.items()]


def of_shared(per_rank: float, per_node: float, layout: Layout) -> list[Need]:
    """Return what data that many ranks want, and that may be forwarded, need.

    Only what a rank, or a node, lacks must come to it.

    `per_rank` bytes must enter (or leave) each rank over whatever links it has, all ranks of a node at once; `per_node`
    bytes each node, over the network links of all its ranks.
    """
    return shared_needs(layout, per_rank, per_rank * layout.ranks_per_node, per_node)


def shared_needs(layout: Layout, of_rank: float, of_ranks: float, of_node: float) -> list[Need]:
    """Return what `of_shared` does, where ranks differ: bytes of the rank that lacks most, and of the ranks of a node.

    of_node: of the node that lacks most, each byte once for all of its ranks.
    """
    links = tuple(
        link for link, there in zip(LINK_CLASSES, (layout.ranks_per_node > 1, layout.nodes > 1), strict=True) if there
    )
    needs = [Need(of_rank, links)]
    if layout.nodes > 1:
        needs.append(Need(of_ranks, links, "node"))
        needs.append(Need(of_node, ("inter",), "node"))
    return needs


_UNITS = {"kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8, "tbit": 1e12 / 8, "MB": 1e6, "GB": 1e9, "TB": 1e12,
          "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}  # fmt: skip
_RATE = re.compile(r"(?:(\d{1,6})x)?(\d+(?:\.\d+)?)([a-zA-Z]+)((?:ps|/s)?)")
_OWNERS: dict[LinkClass, Owner] = {"inter": "node", "intra": "rank"}
RATE_HINT = "bits: 400gbit (kbit, mbit, gbit, tbit), or bytes: 50GBps (MBps, GBps, GiBps); 4x400gbit: four of them"


def parse_link_rate(link: LinkClass, text: str) -> LinkRate:
    """Return the declared rate of `400gbit`, `4x400gbit`, `450GBps`, `50GB/s`: bits or bytes a second, each direction.

    Between nodes it is of all cards of a node together, which its ranks share; inside a node of each rank. Raises
    `UsageError`.
    """
    match = _RATE.fullmatch(str(text).strip())
    unit, per_second = (match[3], match[4]) if match else ("", "")
    unit = unit.removesuffix("ps") if not per_second else unit
    bits = unit.lower() in _UNITS and unit.lower().endswith("bit")
    factor = _UNITS.get(unit.lower() if bits else unit)
    if match and factor is None and unit.lower() in ("gb", "mb", "kb", "tb"):
        raise UsageError(f"link_rate.{link} is {text!r}, which may mean bits or bytes", hint=RATE_HINT)
    gbps = int(match[1] or 1) * float(match[2]) * factor / 1e9 if match and factor else 0.0
    if not 0 < gbps < math.inf:
        raise UsageError(f"link_rate.{link} is {text!r}", hint=RATE_HINT)
    return LinkRate(gbps=gbps, of=_OWNERS[link], kind="declared", source=str(text).strip())


def parse_link_rates(words: Iterable[str]) -> dict[str, LinkRate]:
    """Return the rates of `inter=4x400gbit`, `intra=450GBps`, of each class the last. Raises `UsageError`."""
    rates: dict[str, LinkRate] = {}
    for word in words:
        name, _, text = word.partition("=")
        for link in LINK_CLASSES:
            if name.strip() == link:
                rates[link] = parse_link_rate(link, text)
                break
        else:
            raise UsageError(f"--link-rate {word!r} names no class of links",
                             hint="inter=RATE between nodes, intra=RATE inside them: inter=4x400gbit")  # fmt: skip
    return rates
