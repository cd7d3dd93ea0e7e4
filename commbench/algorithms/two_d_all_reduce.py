"""2d: an all-reduce in three stages: sums inside each node, then between nodes, and back to the node's ranks.

A buffer of S bytes is cut into slices, one for each of a node's `leaders`. Each leader gets its slice from all ranks of
its node and adds them up; leaders of equal local index exchange their sums; each hands the total to its node. Over the
link of each of N nodes that is 2 (N - 1) / N S, the least that there is, where one ring of n ranks takes 2 (n - 1) / n.

`rounds=1` sends whole sums to all other nodes at once: the least messages one after the other, and as few bytes on two
nodes. `rounds=2` scatters them between nodes and gathers totals, so that bytes stay as above on more. With `leaders=1`
a node sends one message to each other node: that is for small buffers, where a message costs more than its bytes.

All ranks get the same bits: a slice's total is made by one rank, or in the order of nodes by each that makes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound, ProgramBound, steps_in_order
from commbench.algorithms.chunks import cut
from commbench.algorithms.two_d_intra_first import unsupported_layout
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Message, Work

_INSIDE = ("reduce", "keep", WAIT, "sum")
_ORDERS = {
    1: (*_INSIDE, "between", WAIT, "total", "gather"),
    2: (*_INSIDE, "scatter", WAIT, "total", "share", WAIT, "gather"),
}


class TwoDAllReduce(AlgorithmBase):
    """Sum inside of nodes, then between them, then hand the totals to the node."""

    name = "2d"
    collective = "all_reduce"
    params = {
        "leaders": (0, "ranks of a node that sum a slice each and send it to other nodes; 0: all"),
        "rounds": (1, "exchanges between nodes: 1, of whole sums; 2: each node totals its part, then shares it"),
    }
    tries = {"leaders": (0, 1), "rounds": (1, 2)}
    demands = {"op": "sum"}

    def unsupported(self, spec: Spec) -> str:
        if reason := unsupported_layout(spec.layout):
            return reason
        leaders, rounds, most = spec.params["leaders"], spec.params["rounds"], spec.layout.ranks_per_node
        if not 0 <= leaders <= most:
            return f"leaders={leaders}: a node has {most} ranks"
        return "" if rounds in _ORDERS else f"rounds={rounds}: there is one exchange between nodes, or two"

    def steps(self, spec: Spec) -> list[Step]:
        layout, slices = spec.layout, _slices(spec)
        nodes = range(layout.nodes)
        inside = [
            (rank, group[j], _length(piece))
            for group in layout.node_groups()
            for j, piece in enumerate(slices)
            for rank in group
        ]
        between: dict[str, list[tuple[int, int, int]]] = {"between": [], "scatter": [], "share": []}
        for rail, piece in zip(layout.rails(), slices, strict=False):
            shares = [_length(part) for part in _cut(piece, layout.nodes)]
            for i in nodes:
                between["between"] += [(rail[i], rail[k], _length(piece)) for k in nodes]
                between["scatter"] += [(rail[i], rail[k], shares[k]) for k in nodes]
                between["share"] += [(rail[i], rail[k], shares[i]) for k in nodes]
        pairs = {"reduce": inside, **between, "gather": [(dst, src, nbytes) for src, dst, nbytes in inside]}
        sends = {
            name: tuple(Send(src, dst, nbytes) for src, dst, nbytes in found if src != dst and nbytes)
            for name, found in pairs.items()
        }
        return steps_in_order(_ORDERS[spec.params["rounds"]], sends)

    def scratch_bytes(self, spec: Spec) -> int:
        slots = max(spec.layout.nodes, spec.layout.ranks_per_node) - 1
        return slots * max(map(_length, _slices(spec)))

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec, self.scratch_bytes(spec))


def _slices(spec: Spec) -> list[slice]:
    """Return what each leader of a node sums; slices of a small buffer may be empty."""
    leaders = spec.params["leaders"] or spec.layout.ranks_per_node
    return _cut(slice(0, spec.size_bytes), leaders)


def _cut(whole: slice, parts: int) -> list[slice]:
    """Return `parts` pieces of whole elements: of 16 bytes, or of the largest power of two below that fits."""
    nbytes = _length(whole)
    pieces = cut(nbytes, parts, math.gcd(nbytes, 16) or 1)
    return [slice(whole.start + piece.start, whole.start + piece.stop) for piece in pieces]


def _length(piece: slice) -> int:
    return int(piece.stop - piece.start)


class _Bound(ProgramBound):
    def __init__(self, comm: Comm, spec: Spec, scratch_bytes: int) -> None:
        rounds, layout = spec.params["rounds"], spec.layout
        super().__init__(_ORDERS[rounds])
        self._slices, self._dtype, self._in_place = _slices(spec), spec.dtype, spec.in_place
        self._place = layout.node(comm.rank), layout.local(comm.rank)
        local = self._place[1]
        self._mine = self._slices[local] if local < len(self._slices) else slice(0, 0)
        self._shares = _cut(self._mine, layout.nodes) if rounds > 1 else [self._mine] * layout.nodes
        self._node, self._rail = comm.subgroup(layout.node_groups()), comm.subgroup(layout.rails())
        self._whole = rounds == 1  # whether each node makes the total of a slice itself
        self._scratch = comm.empty(scratch_bytes)

    def actions(self, out: Array, inp: Array) -> Mapping[str, Callable[[], Work | None]]:
        node, local = self._place
        mine, share = self._mine, self._shares[node]
        mates = [(local + i) % self._node.size for i in range(1, self._node.size)]
        others = [k for k in range(self._rail.size) if k != node]
        leaders = [mate for mate in mates if mate < len(self._slices)]
        own = [mine] * len(mates)
        summands = self._slots(len(mates), _length(mine))
        sums = self._slots(len(others), _length(share))

        def keep() -> None:
            if not self._in_place:
                out[mine] = inp[mine]

        def add_up() -> None:
            for summand in summands:
                self._node.add(out[mine], summand, self._dtype)

        found: dict[str, Callable[[], Work | None]] = {
            "reduce": self._node.ready(
                "exchange",
                _messages(leaders, inp, [self._slices[mate] for mate in leaders]),
                _buffers(mates, summands),
                step="reduce",
            ),
            "keep": keep,
            "sum": add_up,
            "total": self._total(out[share], sums),
            "gather": self._node.ready(
                "exchange",
                _messages(mates, out, own),
                _messages(leaders, out, [self._slices[mate] for mate in leaders]),
                step="gather",
            ),
        }
        theirs = [self._shares[k] for k in others]
        for name, sends, recvs in (
            ("between", theirs, _buffers(others, sums)),
            ("scatter", theirs, _buffers(others, sums)),
            ("share", [share] * len(others), _messages(others, out, theirs)),
        ):
            found[name] = self._rail.ready("exchange", _messages(others, out, sends), recvs, step=name)
        return found

    def _slots(self, count: int, nbytes: int) -> list[Array]:
        return [self._scratch[i * nbytes : (i + 1) * nbytes] for i in range(count)]

    def _total(self, own: Array, sums: Sequence[Array]) -> Callable[[], None]:
        """Add the other nodes' sums, which `sums` has in order, to this node's: in the order of nodes where all do."""
        if len(sums) == 1 or not self._whole:  # two numbers make the same sum in either order
            addends = [own, *sums]
        else:
            node = self._place[0]
            addends = [*sums[:node], own, *sums[node:]]
        first = addends[0]

        def total() -> None:
            for addend in addends[1:]:
                self._rail.add(first, addend, self._dtype)
            if first is not own:
                own[...] = first

        return total

    def close(self) -> None:
        del self._scratch


def _messages(peers: Sequence[int], buffer: Array, pieces: Sequence[slice]) -> list[Message]:
    return _buffers(peers, [buffer[piece] for piece in pieces])


def _buffers(peers: Sequence[int], buffers: Sequence[Array]) -> list[Message]:
    """Return a message for each peer whose part is not empty."""
    return [Message(peer, buffer) for peer, buffer in zip(peers, buffers, strict=True) if len(buffer)]
