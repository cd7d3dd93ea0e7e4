"""2d: an all-gather in two exchanges, first between ranks of equal local index (rails), then inside each node.

What libraries do over one ring of all ranks brings every node (n - 1) / n of the output. A node lacks (N - 1) / N of it
only, which is what the rails bring: on N nodes of m ranks with parts of c bytes a rank sends (N - 1) messages of c
bytes outside, at once, and (m - 1) N of c bytes inside, straight into their places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound, ProgramBound, steps_in_order
from commbench.algorithms.two_d_intra_first import sends_inside, unsupported_layout
from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Message, Work

_ORDER = ("inter", "keep", WAIT, "intra")


class TwoDAllGather(AlgorithmBase):
    """Gather between nodes first, then inside of them."""

    name = "2d"
    collective = "all_gather"

    def unsupported(self, spec: Spec) -> str:
        return unsupported_layout(spec.layout)

    def steps(self, spec: Spec) -> list[Step]:
        layout, nbytes = spec.layout, spec.block_bytes
        inside = sends_inside(layout.node_groups(), nbytes, layout.nodes)
        return steps_in_order(_ORDER, {"inter": sends_inside(layout.rails(), nbytes), "intra": inside})

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class _Bound(ProgramBound):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        super().__init__(_ORDER)
        layout = spec.layout
        self._me, self._in_place = comm.rank, spec.in_place
        self._shape = layout.nodes, layout.ranks_per_node
        self._node, self._rail = comm.subgroup(layout.node_groups()), comm.subgroup(layout.rails())

    def actions(self, out: Array, inp: Array) -> Mapping[str, Callable[[], Work | None]]:
        nodes, m = self._shape
        node, local = divmod(self._me, m)
        parts = out.reshape(nodes * m, -1)
        # Round from the next one, so that not everybody sends to the same rank first.
        others = [(node + i) % nodes for i in range(1, nodes)]
        mates = [(local + i) % m for i in range(1, m)]

        def keep() -> None:
            if not self._in_place:
                parts[self._me] = inp

        return {
            "inter": self._rail.ready(
                "exchange",
                [Message(other, inp) for other in others],
                [Message(other, parts[other * m + local]) for other in others],
                step="inter",
            ),
            "keep": keep,
            "intra": self._node.ready(
                "exchange",
                [Message(mate, parts[k * m + local]) for mate in mates for k in range(nodes)],
                [Message(mate, parts[k * m + mate]) for mate in mates for k in range(nodes)],
                step="intra",
            ),
        }
