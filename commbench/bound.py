"""The bound beside each bandwidth: the least time that the links allow for what must travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from commbench.layout import LINK_CLASSES, Layout, LinkClass
from commbench.spec import Send


class Need(NamedTuple):
    """`nbytes` that some rank must move in one direction over `links` together."""

    nbytes: float
    links: tuple[LinkClass, ...]


def bound_us(needs: Iterable[Need], link_gbps: Mapping[str, float]) -> float:
    """Microseconds below which no algorithm can go. `link_gbps` is the rate per rank and direction of each class."""
    return max((need.nbytes / sum(link_gbps[link] for link in need.links) / 1e3 for need in needs), default=0.0)


def of_messages(sends: Iterable[Send], layout: Layout) -> list[Need]:
    """Of data that each belong to one receiver: the busiest rank, in each direction, over each class of link.

    For a network-bound all-to-all on N nodes of m ranks this gives busbw <= B (n - 1) / (n - m), the ceiling derived
    in docs/metrics.md.
    """
    load: Counter[tuple[str, int, LinkClass]] = Counter()
    for src, dst, nbytes in sends:
        link = layout.link(src, dst)
        load["out", src, link] += nbytes
        load["in", dst, link] += nbytes
    busiest: dict[LinkClass, int] = {}
    for (_, _, link), nbytes in load.items():
        busiest[link] = max(busiest.get(link, 0), nbytes)
    return [Need(nbytes, (link,)) for link, nbytes in busiest.items()]


def of_shared(per_rank: float, per_node: float, layout: Layout) -> list[Need]:
    """Of data that many ranks want, which may be forwarded: only what a rank, or a node, lacks must come to it.

    `per_rank` bytes must enter (or leave) each rank over whatever links it has; `per_node` bytes each node, spread
    over the network links of its ranks.
    """
    links = tuple(
        link for link, there in zip(LINK_CLASSES, (layout.ranks_per_node > 1, layout.nodes > 1), strict=True) if there
    )
    needs = [Need(per_rank, links)]
    if layout.nodes > 1:
        needs.append(Need(per_node / layout.ranks_per_node, ("inter",)))
    return needs
