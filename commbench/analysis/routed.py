"""What a row says of a dispatch or a combine besides: rows, skew, tokens a second, and bandwidths as others count them.

DeepEP counts a row for each (token, rank), or (token, node), own rank and node included, whatever travels; so its
figures compare ways that send less with ways that do not, and are above what a link carries (`logical_*`). What its
busiest direction carries by the algorithm's own messages is `wire_*`.
"""

from __future__ import annotations

from typing import Any

from commbench import collectives
from commbench.collectives import routing
from commbench.collectives.payload import PayloadMoves
from commbench.layout import LINK_CLASSES
from commbench.links import of_messages
from commbench.spec import Spec, Step
from commbench.units import gbps

_OWNERS = {"inter": "node", "intra": "rank"}  # whose busiest direction counts: ranks share the network of their node


def rows(spec: Spec) -> dict[str, Any]:
    """Return what follows from the routing alone: rows a token, own rank and node included, and the skew."""
    counts, shape = routing.counts_of(spec), routing.shape_of(spec)
    tokens = max(1, shape.tokens * spec.ranks)
    received = counts.choices.sum(axis=0)
    return {
        "rows_choice": float(counts.choices.sum()) / tokens,
        "rows_rank": float(counts.ranks.sum()) / tokens,
        "rows_node": float(counts.nodes.sum()) / tokens,
        "skew": float(received.max() / received.mean()) if received.any() else None,
    }


def rates(spec: Spec, steps: list[Step] | None, time_us: float) -> dict[str, Any]:
    """Return tokens a second, all ranks together, and bandwidths, both of rows as they travel: as DeepEP has it."""
    collective = collectives.get(spec.collective)
    assert isinstance(collective, PayloadMoves)
    counts, shape = routing.counts_of(spec), routing.shape_of(collective.travelling(spec))
    found: dict[str, Any] = {
        "tokens_per_s": shape.tokens * spec.ranks / time_us * 1e6,
        "logical_rank_gbps": gbps(int(counts.ranks.sum(axis=0).max()) * shape.row_bytes, time_us),
        "logical_node_gbps": gbps(int(counts.nodes.sum(axis=1).max()) * shape.row_bytes, time_us),
    }
    if steps is None:
        return found
    needs = of_messages((send for step in steps for send in step.sends), spec.layout)
    busiest = {need.links[0]: need.nbytes for need in needs if need.of == _OWNERS[need.links[0]]}
    return {**found, **{f"wire_{link}_gbps": gbps(busiest.get(link, 0.0), time_us) for link in LINK_CLASSES}}
