"""2d_intra_first: two all-to-alls, first inside each node, then between ranks of equal local index (rails).

Tutel's 2DH (Hwang et al., "Tutel: Adaptive Mixture-of-Experts at Scale", section 3.4): the messages between nodes
become m times fewer and m times larger, for the price of sending the data inside the node once more and of two local
permutations. On N nodes of m ranks with blocks of c bytes, a rank sends (m - 1) messages of N c bytes inside and
(N - 1) messages of m c bytes outside.
"""

from __future__ import annotations

from commbench.algorithms.base import Bound, BoundBase
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Work


class TwoDIntraFirst:
    name = "2d_intra_first"
    collective = "all_to_all"
    params: dict[str, tuple[int, str]] = {}

    def supports(self, spec: Spec) -> str | None:
        nodes, per_node = spec.layout.nodes, spec.layout.ranks_per_node
        if nodes < 2 or per_node < 2:
            return f"layout {spec.layout}: two levels need at least 2 nodes of at least 2 ranks"
        return None

    def steps(self, spec: Spec) -> list[Step]:
        layout = spec.layout
        intra = tuple(
            Send(src, dst, layout.nodes * spec.block_bytes)
            for group in layout.node_groups()
            for src in group
            for dst in group
            if src != dst
        )
        inter = tuple(
            Send(src, dst, layout.ranks_per_node * spec.block_bytes)
            for rail in layout.rails()
            for src in rail
            for dst in rail
            if src != dst
        )
        return [Step(name="intra", sends=intra), Step(name="inter", sends=inter, after=("intra",))]

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
        self._permuted = comm.empty(spec.size_bytes)

    def start(self, out: Array, inp: Array) -> Work:
        n, m = self._shape
        permuted = self._permuted
        # (node, local) -> (local, node): what goes to one local peer, for all nodes, lies together.
        permuted.reshape(m, n, -1)[...] = inp.reshape(n, m, -1).swapaxes(0, 1)
        self._node.all_to_all(out, permuted, step="intra").wait()
        # `out` holds (source local, node); one message per node wants (node, source local).
        permuted.reshape(n, m, -1)[...] = out.reshape(m, n, -1).swapaxes(0, 1)
        return self._rail.all_to_all(out, permuted, step="inter")

    def close(self) -> None:
        del self._permuted
