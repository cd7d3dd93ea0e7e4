"""2d_inter_first: two exchanges, first between ranks of equal local index (rails), then inside each node.

What Tutel's Python does (`PrimAllToAll2D`); compare `2d_intra_first`, which sends the same messages in the other
order. The input is sorted by node already, so the network is busy at once; both permutations come after it.
"""

from __future__ import annotations

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.algorithms.two_d_intra_first import TwoDIntraFirstV, inside_and_between, two_levels
from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Done, Work


class TwoDInterFirst(AlgorithmBase):
    """Of equal blocks."""

    name = "2d_inter_first"
    collective = "all_to_all"

    def supports(self, spec: Spec) -> str | None:
        return two_levels(spec.layout)

    def steps(self, spec: Spec) -> list[Step]:
        intra, inter = inside_and_between(spec.layout, spec.block_bytes)
        return [Step(name="inter", sends=inter), Step(name="intra", sends=intra, after=("inter",))]

    def scratch_bytes(self, spec: Spec) -> int:
        return spec.size_bytes

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class _Bound(BoundBase):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        layout = spec.layout
        self._shape = layout.nodes, layout.ranks_per_node
        self._node = comm.subgroup(layout.node_groups())
        self._rail = comm.subgroup(layout.rails())
        self._arrived = comm.empty(spec.size_bytes)

    def start(self, out: Array, inp: Array) -> Work:
        n, m = self._shape
        arrived = self._arrived
        self._rail.all_to_all(arrived, inp, step="inter").wait()
        # (source node, local) -> (local, source node): what goes to one local peer lies together.
        out.reshape(m, n, -1)[...] = arrived.reshape(n, m, -1).swapaxes(0, 1)
        self._node.all_to_all(arrived, out, step="intra").wait()
        # (source local, source node) -> (source node, source local)
        out.reshape(n, m, -1)[...] = arrived.reshape(m, n, -1).swapaxes(0, 1)
        return Done()

    def close(self) -> None:
        del self._arrived


class TwoDInterFirstV(TwoDIntraFirstV):
    """Of unequal blocks, whose sizes all know."""

    name = "2d_inter_first"
    legs = ("inter", "intra")
