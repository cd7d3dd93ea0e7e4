"""scatter_gather: each receiver gets a part of a part, then they exchange what they have, nodes before ranks.

Of A nodes that lack it each gets 1 / A from the sender and the rest from the others, so a byte enters each of them
once, and the sender's node is left once. Links are busy for 2 - 1 / A parts one after the other, where naive sends take
A and more.
"""

from __future__ import annotations

from collections.abc import Mapping

from commbench.algorithms.chunks import UNIT_BYTES, cut
from commbench.algorithms.reshard_plan import BALANCE, Cast, PartHop, Planned, Sized, casts
from commbench.layout import Layout

_STEPS = ("scatter", "nodes", "ranks")


class ScatterGather(Planned):
    name = "scatter_gather"
    params = {"balance": BALANCE}

    def hops(self, sized: Sized, layout: Layout, params: Mapping[str, int]) -> list[PartHop]:
        found = [
            hop
            for cast in casts(sized, layout, balance=bool(params["balance"]))
            for hop in _of_cast(cast, sized[cast.piece][1])
        ]
        return sorted(found, key=lambda hop: _STEPS.index(hop.step))


def _of_cast(cast: Cast, nbytes: int) -> list[PartHop]:
    unit = UNIT_BYTES if nbytes % UNIT_BYTES == 0 else 1
    hops: list[PartHop] = []
    held: dict[int, list[slice]] = {rank: [] for rank in cast.receivers}  # parts, by the rank that hands them on
    for ranks, of_node in zip(cast.nodes, cut(nbytes, len(cast.nodes), unit), strict=True):
        for place, part in enumerate(cut(of_node.stop - of_node.start, len(ranks), unit)):
            piece = slice(of_node.start + part.start, of_node.start + part.stop)
            if piece.start == piece.stop:
                continue
            hops.append(PartHop(_STEPS[0], cast.sender, ranks[place], cast.piece, piece))
            held[ranks[place]].append(piece)
            for others in cast.nodes:
                if others is not ranks:
                    to = others[place % len(others)]
                    hops.append(PartHop(_STEPS[1], ranks[place], to, cast.piece, piece))
                    held[to].append(piece)
    for ranks in cast.nodes:
        hops += [
            PartHop(_STEPS[2], src, dst, cast.piece, piece)
            for src in ranks
            for piece in held[src]
            for dst in ranks
            if dst != src
        ]
    return hops
