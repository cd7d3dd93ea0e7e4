"""2d: a reduce-scatter in two exchanges, first inside each node, then between ranks of equal local index (rails).

`2d` of all_gather turned round. Inside its node a rank gets what the others have for its rail, a part for each node,
and adds it up; then only sums travel between nodes. On N nodes of m ranks with parts of c bytes a rank sends (m - 1) N
messages of c bytes inside, straight out of the input, and (N - 1) of c bytes outside: (N - 1) / N of the input over
each node's link, where one ring of all ranks takes (n - 1) / n, and gloo, which makes an all-reduce of it, twice that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound, ProgramBound, steps_in_order
from commbench.algorithms.two_d_intra_first import sends_inside, unsupported_layout
from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Message, Work

_ORDER = ("intra", WAIT, "sum", "inter", WAIT, "total")


class TwoDReduceScatter(AlgorithmBase):
    """Sum inside of nodes first, then between them."""

    name = "2d"
    collective = "reduce_scatter"
    demands = {"op": "sum"}

    def unsupported(self, spec: Spec) -> str:
        return unsupported_layout(spec.layout)

    def steps(self, spec: Spec) -> list[Step]:
        layout, nbytes = spec.layout, spec.block_bytes
        inside = sends_inside(layout.node_groups(), nbytes, layout.nodes)
        return steps_in_order(_ORDER, {"intra": inside, "inter": sends_inside(layout.rails(), nbytes)})

    def scratch_bytes(self, spec: Spec) -> int:
        return spec.size_bytes - spec.block_bytes

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class _Bound(ProgramBound):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        super().__init__(_ORDER)
        layout = spec.layout
        self._me, self._dtype = comm.rank, spec.dtype
        self._shape = layout.nodes, layout.ranks_per_node
        self._node, self._rail = comm.subgroup(layout.node_groups()), comm.subgroup(layout.rails())
        self._scratch = comm.empty(spec.size_bytes - spec.block_bytes)

    def actions(self, out: Array, inp: Array) -> Mapping[str, Callable[[], Work | None]]:
        nodes, m = self._shape
        node, local = divmod(self._me, m)
        parts, slots = inp.reshape(nodes * m, -1), self._scratch.reshape(nodes * m - 1, -1)
        mates = [(local + i) % m for i in range(1, m)]
        others = [(node + i) % nodes for i in range(1, nodes)]
        from_mates = [slots[i * nodes : (i + 1) * nodes] for i in range(m - 1)]  # a part for each node
        from_others = [slots[(m - 1) * nodes + i] for i in range(nodes - 1)]
        sums, own = from_mates[0], parts.reshape(nodes, m, -1)[:, local]

        def add_up() -> None:
            for addend in (own, *from_mates[1:]):
                self._node.add(sums, addend, self._dtype)

        def total() -> None:
            out[...] = sums[node]
            for addend in from_others:
                self._rail.add(out, addend, self._dtype)

        return {
            "intra": self._node.ready(
                "exchange",
                [Message(mate, parts[k * m + mate]) for mate in mates for k in range(nodes)],
                [Message(mate, kept[k]) for mate, kept in zip(mates, from_mates, strict=True) for k in range(nodes)],
                step="intra",
            ),
            "sum": add_up,
            "inter": self._rail.ready(
                "exchange",
                [Message(other, sums[other]) for other in others],
                [Message(other, kept) for other, kept in zip(others, from_others, strict=True)],
                step="inter",
            ),
            "total": total,
        }

    def close(self) -> None:
        del self._scratch
