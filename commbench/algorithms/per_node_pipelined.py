"""per_node_pipelined: `per_node` in chunks of tokens, so that links inside nodes and between them work together.

Chunk c is the c-th piece of each rank's tokens. While the rails carry chunk c + 1, the nodes forward chunk c: two
communicators, on each of which at most one exchange is in flight, with counts in front of each where nobody knows them.
Back, from the last chunk to the first, the rails bring chunk c + 1 while the nodes add up chunk c. Each chunk has
buffers of its own, so that no exchange waits for room: together they have the rows of `per_node`.
"""

from __future__ import annotations

from commbench.algorithms.token_exchange import HoppingCombine, HoppingDispatch
from commbench.algorithms.token_plan import NODES, RAILS, Leg, Way
from commbench.algorithms.two_d_intra_first import unsupported_layout
from commbench.collectives import routing
from commbench.spec import Spec

_PARAMS = {"chunks": (4, "chunks of every block, or of every rank's tokens: two are worked on at the same time")}
_TRIES: dict[str, tuple[int, ...]] = {"chunks": (2, 4, 8)}


def _way(spec: Spec) -> Way:
    """Return the legs in the order in which they start: the rails are one chunk ahead of the nodes."""
    tokens, chunks = routing.shape_of(spec).tokens, spec.params["chunks"]
    legs: list[Leg] = []
    for step in range(chunks + 1):
        for leg, chunk in ((RAILS, step), (NODES, step - 1)):
            if 0 <= chunk < chunks:
                piece = range(tokens * chunk // chunks, tokens * (chunk + 1) // chunks)
                legs.append(leg._replace(chunk=chunk, tokens=piece))
    return Way(tuple(legs))


def _unsupported(spec: Spec) -> str:
    chunks, tokens = spec.params["chunks"], routing.shape_of(spec).tokens
    if chunks < 1:
        return f"chunks={chunks}: there must be at least one"
    if chunks > tokens:
        return f"chunks={chunks}: a rank has {tokens} tokens to share out"
    return unsupported_layout(spec.layout)


class PerNodePipelinedDispatch(HoppingDispatch):
    name = "per_node_pipelined"
    params = _PARAMS
    tries = _TRIES
    concurrent = True

    def way_of(self, spec: Spec) -> Way:
        return _way(spec)

    def unsupported(self, spec: Spec) -> str:
        return _unsupported(spec) or super().unsupported(spec)


class PerNodePipelinedCombine(HoppingCombine):
    name = "per_node_pipelined"
    params = _PARAMS
    tries = _TRIES
    concurrent = True

    def way_of(self, spec: Spec) -> Way:
        return _way(spec)

    def unsupported(self, spec: Spec) -> str:
        return _unsupported(spec) or super().unsupported(spec)
