"""The bound beside each bandwidth: the least time that the links allow for what must travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from commbench.layout import Layout
from commbench.spec import Send


def bound_us(traffic: Sequence[Send], layout: Layout, link_gbps: Mapping[str, float]) -> float:
    """Microseconds below which no algorithm can go: the busiest (rank, direction, link class) at the link's rate.

    `link_gbps` is the rate per rank and direction of each link class. For a network-bound all-to-all on N nodes of m
    ranks this gives busbw <= B (n - 1) / (n - m), the ceiling derived in docs/metrics.md.
    """
    load: Counter[tuple[str, int, str]] = Counter()
    for src, dst, nbytes in traffic:
        link = layout.link(src, dst)
        load["out", src, link] += nbytes
        load["in", dst, link] += nbytes
    return max((nbytes / link_gbps[link] / 1e3 for (_, _, link), nbytes in load.items()), default=0.0)
