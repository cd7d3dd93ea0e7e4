"""2d_inter_first: two exchanges, first between ranks of equal local index (rails), then inside each node.

What Tutel's Python does (`PrimAllToAll2D`); compare `2d_intra_first`, which sends the same messages in the other
order. The input is sorted by node already, so the network is busy at once; both permutations come after it.
"""

from __future__ import annotations

from commbench.algorithms.base import Bound, CountsInside
from commbench.algorithms.counts_inside import InterFirstInside
from commbench.algorithms.two_d_intra_first import TwoDIntraFirst, TwoDIntraFirstV, TwoLevelsBound
from commbench.spec import Spec
from commbench.transports.base import Array, Comm, Done, Work


class TwoDInterFirst(TwoDIntraFirst):
    """Exchange equal blocks between nodes first, then inside of them."""

    name = "2d_inter_first"
    legs = ("inter", "intra")

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class _Bound(TwoLevelsBound):
    def start(self, out: Array, inp: Array) -> Work:
        n, m = self._shape
        arrived = self._scratch
        self._rail.all_to_all(arrived, inp, step="inter").wait()
        # (source node, local) -> (local, source node): what goes to one local peer lies together.
        out.reshape(m, n, -1)[...] = arrived.reshape(n, m, -1).swapaxes(0, 1)
        self._node.all_to_all(arrived, out, step="intra").wait()
        # (source local, source node) -> (source node, source local)
        out.reshape(n, m, -1)[...] = arrived.reshape(m, n, -1).swapaxes(0, 1)
        return Done()


class TwoDInterFirstV(TwoDIntraFirstV):
    """Exchange unequal blocks, whose sizes all know, between nodes first."""

    name = "2d_inter_first"
    legs = ("inter", "intra")
    counts_inside: type[CountsInside] | None = InterFirstInside
