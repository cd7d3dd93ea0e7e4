"""Whether there are several ways to do what a program calls, on the nodes that its group has."""

from __future__ import annotations

from collections.abc import Sequence

from commbench import algorithms, collectives
from commbench.collectives.base import PART_BYTES
from commbench.layout import Layout
from commbench.record.trace import ProgramTrace
from commbench.spec import Spec


def several_ways(collective: str, layout: Layout) -> bool:
    """Return whether a group of `layout` can do a collective in another way than the default."""
    names = algorithms.names(collective)
    if len(names) < 2 or layout.ranks < 2 or collectives.get(collective).routed:
        return False
    return any(not _unsupported(collective, name, layout) for name in names[1:])


def is_sum(collective: str) -> bool:
    """Return whether a collective combines what ranks bring, and so goes by a profile where that is asked for alone."""
    return collective in collectives.TABLE and collectives.get(collective).reduces({})


def layout_of(trace: ProgramTrace, ranks: Sequence[int]) -> Layout:
    """Return how a group lies on the nodes of its program; a node for each rank where that is not the same on all."""
    whole = Layout(*trace.layout())
    nodes = [whole.node(rank) for rank in ranks]
    counts = {nodes.count(node) for node in nodes}
    return Layout(len({*nodes}), counts.pop()) if len(counts) == 1 else Layout(len(ranks), 1)


def _unsupported(collective: str, name: str, layout: Layout) -> str:
    """Return in words why an algorithm cannot do it on this layout, in some size; "" if it can."""
    algorithm, its = algorithms.get(collective, name), collectives.get(collective)
    arguments = {key: item.default for key, item in its.arguments.items() if item.default is not None}
    try:
        size, asked = its.settle(layout.ranks**2 * PART_BYTES, layout, {**arguments, **algorithm.demands})
    except ValueError as error:
        return str(error)
    return algorithm.unsupported(
        Spec(
            collective=collective, dtype="fp32", size_bytes=size, layout=layout, arguments=asked,
            params={key: value for key, (value, _) in algorithm.params.items()},
        )
    )  # fmt: skip
