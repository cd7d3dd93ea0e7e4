"""broadcast_chain: each part once into each node, from node to node in chunks, and on inside it meanwhile.

With k chunks of a part to A nodes a link is busy for k + A - 1 chunks, where naive sends take A parts (Alpa, arXiv
2211.05322). A node's first rank hands a chunk to the next node and, at the same time, to the next rank of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from commbench.algorithms.chunks import UNIT_BYTES, cut
from commbench.algorithms.reshard_plan import BALANCE, Cast, PartHop, Planned, Sized, casts
from commbench.layout import Layout
from commbench.spec import Spec


class BroadcastChain(Planned):
    name = "broadcast_chain"
    params = {"chunks": (4, "parts of each part of a tensor: one is handed on while the next one comes"),
              "balance": BALANCE}  # fmt: skip
    tries = {"chunks": (2, 4, 8)}

    def unsupported(self, spec: Spec) -> str:
        chunks = spec.params["chunks"]
        return "" if chunks >= 1 else f"chunks={chunks}: there must be at least one"

    def hops(self, sized: Sized, layout: Layout, params: Mapping[str, int]) -> list[PartHop]:
        rounds: dict[int, list[PartHop]] = {}
        for cast in casts(sized, layout, balance=bool(params["balance"])):
            nbytes = sized[cast.piece][1]
            for chunk, part in enumerate(_chunks(nbytes, params["chunks"])):
                for depth, src, dst in _tree(cast, layout):
                    number = chunk + depth
                    rounds.setdefault(number, []).append(PartHop(f"round-{number}", src, dst, cast.piece, part))
        return [hop for _, found in sorted(rounds.items()) for hop in found]


def _chunks(nbytes: int, chunks: int) -> list[slice]:
    unit = UNIT_BYTES if nbytes % UNIT_BYTES == 0 else 1
    return [part for part in cut(nbytes, chunks, unit) if part.start < part.stop]


def _tree(cast: Cast, layout: Layout) -> Iterator[tuple[int, int, int]]:
    """Yield (depth, from, to) of each hop of a chunk. Ranks of the sender's node, if any, hang on the sender."""
    head, depth = cast.sender, 0
    for ranks in cast.nodes:
        at, deep = head, depth
        for rank in ranks:
            yield deep, at, rank
            at, deep = rank, deep + 1
        if layout.node(ranks[0]) != layout.node(cast.sender):
            head, depth = ranks[0], depth + 1
