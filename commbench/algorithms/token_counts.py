"""How many rows each hop of two levels brings, told in one exchange before any row moves.

A rank knows whom its tokens reach, and through whom: rows for a rank of another node come through that rank there which
has its own place. So what it tells each rank of its tokens alone says, added up, what every hop will bring.
"""

from __future__ import annotations

import numpy as np

from commbench.algorithms.token_plan import Copies, Way
from commbench.collectives.routing import NONE, Ints
from commbench.layout import Layout


def counts_ahead(way: Way, layout: Layout, rank: int, per_rank: int, own: Copies) -> Ints:
    """Return what a rank tells each rank of its tokens before any row moves, on a way of two levels.

    [ranks, 2 x chunks]: of each chunk, rows that go to that rank over the rails; and rows that it gets in its node,
    from the rank there through which this rank's tokens come.
    """
    here = np.where(own.experts == NONE, layout.ranks, own.experts // per_rank)
    wanted = np.zeros((len(own.row), layout.ranks + 1), bool)
    np.put_along_axis(wanted, here, True, axis=1)
    by_node = wanted[:, :-1].reshape(len(own.row), layout.nodes, layout.ranks_per_node)
    node, local = divmod(rank, layout.ranks_per_node)
    told = np.zeros((layout.nodes, layout.ranks_per_node, way.chunks, 2), np.int64)
    for chunk, leg in enumerate(leg for leg in way.legs if leg.name == "rails"):
        of_chunk = by_node[leg.which(own)]
        told[:, local, chunk, 0] = of_chunk.any(axis=2).sum(axis=0)
        told[:, :, chunk, 1] = of_chunk.sum(axis=0)
    told[node, local, :, 0] = 0  # they are there
    told[:, local, :, 1] = 0  # what comes over a rail is at its end
    return told.reshape(layout.ranks, -1)


def received_ahead(way: Way, layout: Layout, rank: int, told: Ints) -> list[list[int]]:
    """Return for each leg the rows that each rank of its group sends to this one, as `counts_ahead` of all ranks told.

    told: [ranks, 2 x chunks], what each rank has told this one.
    """
    by_rail = told.reshape(layout.nodes, layout.ranks_per_node, way.chunks, 2)
    local = layout.local(rank)
    over_rails, in_node = by_rail[:, local, :, 0], by_rail[..., 1].sum(axis=0)
    return [(over_rails if leg.name == "rails" else in_node)[:, leg.chunk or 0].tolist() for leg in way.legs]
