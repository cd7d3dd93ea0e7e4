"""The bound beside each bandwidth: the least time that the links allow for what must travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from commbench.layout import LINK_CLASSES, Layout, LinkClass
from commbench.spec import Send

Owner = Literal["rank", "node"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRate:
    """What one class of link does in each direction. Of a node: its ranks share it, as they share a NIC."""

    gbps: float
    of: Owner = "rank"
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


def bound_us(needs: Iterable[Need], links: Mapping[str, LinkRate], layout: Layout, *, share: float = 1.0) -> float:
    """Microseconds below which the needs cannot be met; 0 where no link with a known rate is involved.

    `share` is the part of what a node's ranks share that this group has, others using the rest at the same time.
    """
    least = 0.0
    for need in needs:
        if not all(link in links for link in need.links):
            continue  # a rate that nobody knows bounds nothing
        rates = [links[link] for link in need.links]
        gbps = sum(_capacity(rate, need.of, layout, share) for rate in rates)
        least = max(least, (need.nbytes - sum(rate.burst_bytes for rate in rates)) / gbps / 1e3)
    return least


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

    `per_rank` bytes must enter (or leave) each rank over whatever links it has; `per_node` bytes each node, over the
    network links of all its ranks.
    """
    links = tuple(
        link for link, there in zip(LINK_CLASSES, (layout.ranks_per_node > 1, layout.nodes > 1), strict=True) if there
    )
    needs = [Need(per_rank, links)]
    if layout.nodes > 1:
        needs.append(Need(per_node, ("inter",), "node"))
    return needs
