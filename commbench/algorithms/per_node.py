"""per_node: a row for each other node that has an expert of the token; there it is forwarded to the ranks.

The first hop is between ranks of equal place on their nodes (rails), the second inside of nodes: what came over the
rails, and the own tokens, to each rank that has an expert of them. Between nodes of N, of k choices among E experts,
N (1 - C(E - E/N, k) / C(E, k)) rows a token are left, own node included. Back, the ranks of a node send what they have
added up to the rank that the token came through, which sends the sum of its node.
"""

from __future__ import annotations

from commbench.algorithms.token_exchange import HoppingCombine, HoppingDispatch
from commbench.algorithms.token_plan import NODES, RAILS, Way
from commbench.algorithms.two_d_intra_first import unsupported_layout
from commbench.spec import Spec

_WAY = Way((RAILS, NODES))


class PerNodeDispatch(HoppingDispatch):
    name = "per_node"
    way = _WAY

    def unsupported(self, spec: Spec) -> str:
        return unsupported_layout(spec.layout) or super().unsupported(spec)


class PerNodeCombine(HoppingCombine):
    name = "per_node"
    way = _WAY

    def unsupported(self, spec: Spec) -> str:
        return unsupported_layout(spec.layout) or super().unsupported(spec)
