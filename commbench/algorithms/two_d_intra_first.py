"""2d_intra_first: two exchanges, first inside each node, then between ranks of equal local index (rails).

Tutel's 2DH (Hwang et al., "Tutel: Adaptive Mixture-of-Experts at Scale", section 3.4): the messages between nodes
become m times fewer and m times larger, for the price of sending the data inside the node once more and of two local
permutations. On N nodes of m ranks with blocks of c bytes, a rank sends (m - 1) messages of N c bytes inside and
(N - 1) messages of m c bytes outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound, BoundBase, CountsInside, ProgramBound, steps_in_order
from commbench.algorithms.chunks import Move, Places
from commbench.algorithms.counts_inside import IntraFirstInside
from commbench.collectives.all_to_allv import AllToAllV
from commbench.layout import Layout
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Message, Work


def sends_inside(groups: Sequence[Sequence[int]], nbytes: int, parts: int = 1) -> tuple[Send, ...]:
    """Return `parts` messages of `nbytes` from each rank of a group to each other one of it."""
    pairs = [(src, dst) for group in groups for src in group for dst in group if src != dst]
    return tuple(Send(src, dst, nbytes) for src, dst in pairs for _ in range(parts))


def unsupported_layout(layout: Layout) -> str:
    """Return in words why `layout` has no two levels; "" if it has."""
    if layout.nodes < 2 or layout.ranks_per_node < 2:
        return f"layout {layout}: two levels need at least 2 nodes of at least 2 ranks"
    return ""


def inside_and_between(layout: Layout, block_bytes: int) -> tuple[tuple[Send, ...], tuple[Send, ...]]:
    """The messages of both exchanges when all blocks are of `block_bytes`."""

    def sends(groups: list[list[int]], nbytes: int) -> tuple[Send, ...]:
        return tuple(Send(src, dst, nbytes) for group in groups for src in group for dst in group if src != dst)

    inside = sends(layout.node_groups(), layout.nodes * block_bytes)
    return inside, sends(layout.rails(), layout.ranks_per_node * block_bytes)


class TwoDIntraFirst(AlgorithmBase):
    """Exchange equal blocks inside of nodes first, then between them."""

    name = "2d_intra_first"
    collective = "all_to_all"
    legs = ("intra", "inter")  # one after the other

    def unsupported(self, spec: Spec) -> str:
        return unsupported_layout(spec.layout)

    def steps(self, spec: Spec) -> list[Step]:
        sends = dict(zip(("intra", "inter"), inside_and_between(spec.layout, spec.block_bytes), strict=True))
        first, last = self.legs
        return [Step(name=first, sends=sends[first]), Step(name=last, sends=sends[last], after=(first,))]

    def scratch_bytes(self, spec: Spec) -> int:
        return spec.size_bytes

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class TwoLevelsBound(BoundBase):
    """The communicators of both levels, and one buffer as large as the input."""

    def __init__(self, comm: Comm, spec: Spec) -> None:
        layout = spec.layout
        self._shape = layout.nodes, layout.ranks_per_node
        self._node = comm.subgroup(layout.node_groups())
        self._rail = comm.subgroup(layout.rails())
        self._scratch = comm.empty(spec.size_bytes)

    def close(self) -> None:
        del self._scratch


class _Bound(TwoLevelsBound):
    def start(self, out: Array, inp: Array) -> Work:
        n, m = self._shape
        permuted = self._scratch
        # (node, local) -> (local, node): what goes to one local peer, for all nodes, lies together.
        permuted.reshape(m, n, -1)[...] = inp.reshape(n, m, -1).swapaxes(0, 1)
        self._node.all_to_all(out, permuted, step="intra").wait()
        # `out` holds (source local, node); one message per node wants (node, source local).
        permuted.reshape(n, m, -1)[...] = out.reshape(m, n, -1).swapaxes(0, 1)
        return self._rail.all_to_all(out, permuted, step="inter")


class TwoDIntraFirstV(AlgorithmBase):
    """Exchange unequal blocks, whose sizes all know: each goes to a rank in between, and from there to its receiver.

    The input is sorted by receiver and the output by sender, so with the rails first nothing has to be packed for
    them, and with the rails last nothing unpacked.
    """

    name = "2d_intra_first"
    collective = "all_to_allv"
    legs = ("intra", "inter")
    counts_inside: type[CountsInside] | None = IntraFirstInside

    def unsupported(self, spec: Spec) -> str:
        return unsupported_layout(spec.layout)

    def steps(self, spec: Spec) -> list[Step]:
        loads = _loads(spec, self.legs)
        sends = {
            leg: tuple(Send(*pair, nbytes) for pair, nbytes in load.items() if nbytes)
            for leg, load in zip(self.legs, loads, strict=True)
        }
        return steps_in_order(_order(self.legs), sends)

    def scratch_bytes(self, spec: Spec) -> int:
        return sum(_scratch(spec, self.legs))

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _BoundV(comm, spec, self.legs)


def _order(legs: tuple[str, str]) -> list[str]:
    return ["pack", legs[0], "keep", WAIT, "permute", legs[1], *([WAIT, "unpack"] if legs[1] == "intra" else [])]


def _groups(layout: Layout, leg: str) -> list[list[int]]:
    return layout.node_groups() if leg == "intra" else layout.rails()


def _loads(spec: Spec, legs: tuple[str, str]) -> tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]:
    """Bytes from one rank to another on either leg."""
    layout, m = spec.layout, spec.layout.ranks_per_node
    loads: tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]] = Counter(), Counter()
    for send in AllToAllV().messages(spec):
        near, far = (send.src, send.dst) if legs[0] == "intra" else (send.dst, send.src)
        between = layout.node(near) * m + layout.local(far)
        for load, pair in zip(loads, ((send.src, between), (between, send.dst)), strict=True):
            if pair[0] != pair[1]:
                load[pair] += send.nbytes
    return loads


def _scratch(spec: Spec, legs: tuple[str, str]) -> tuple[int, int]:
    """Bytes of the two buffers of every rank: for what is sent, and for what has arrived."""
    sent: tuple[Counter[int], Counter[int]] = Counter(), Counter()
    arrived: tuple[Counter[int], Counter[int]] = Counter(), Counter()
    for leg, load in enumerate(_loads(spec, legs)):
        for (src, dst), nbytes in load.items():
            sent[leg][src] += nbytes
            arrived[leg][dst] += nbytes
    packs = legs[0] == "intra"
    sizes = [*(sent[0].values() if packs else ()), *sent[1].values()]
    return max(sizes, default=0), max([*arrived[0].values(), *(() if packs else arrived[1].values())], default=0)


class _BoundV(ProgramBound):
    def __init__(self, comm: Comm, spec: Spec, legs: tuple[str, str]) -> None:
        super().__init__(_order(legs))
        me, matrix, self._legs = comm.rank, AllToAllV().counts(spec), legs
        first, second = (_groups(spec.layout, leg) for leg in legs)
        of_first, of_second = ({rank: group for group in groups for rank in group} for groups in (first, second))
        packs = legs[0] == "intra"
        self._comms = comm.subgroup(first), comm.subgroup(second)
        # The blocks of each message, in the order that both ends keep: by receiver first, then by sender.
        to_between = {peer: [(me, dst) for dst in of_second[peer]] for peer in of_first[me]}
        to_me = {peer: [(peer, dst) for dst in of_second[me]] for peer in of_first[me]}
        from_me = {peer: [(src, peer) for src in of_first[me]] for peer in of_second[me]}
        from_between = {peer: [(src, me) for src in of_first[peer]] for peer in of_second[me]}

        def others(messages: dict[int, list[tuple[int, int]]]) -> Places:
            return Places(matrix, [block for peer, blocks in messages.items() if peer != me for block in blocks])

        whole_input = Places(matrix, [(me, dst) for dst in range(comm.size)])
        whole_output = Places(matrix, [(src, me) for src in range(comm.size)])
        packed, arrived, permuted = others(to_between), others(to_me), others(from_me)
        unpacked = whole_output if packs else others(from_between)
        senders, receivers = of_first[me], of_second[me]

        def sides(messages: dict[int, list[tuple[int, int]]], places: Places, group: list[int]) -> list[_Side]:
            runs = [(group.index(peer), places.run(blocks)) for peer, blocks in messages.items() if peer != me]
            return [(peer, where) for peer, where in runs if where.start != where.stop]

        self._sends = (
            sides(to_between, packed if packs else whole_input, senders),
            sides(from_me, permuted, receivers),
        )
        self._recvs = sides(to_me, arrived, senders), sides(from_between, unpacked, receivers)
        foreign = [src for src in senders if src != me]
        self._pack = packed.moves(whole_input, [b for p, bs in to_between.items() if p != me for b in bs])
        self._pack = self._pack if packs else []
        self._keep = whole_output.moves(whole_input, [(me, me)])
        onwards = [dst for dst in receivers if dst != me]
        self._own_onwards = permuted.moves(whole_input, [(me, dst) for dst in onwards])
        self._onwards = permuted.moves(arrived, [(src, dst) for dst in onwards for src in foreign])
        self._here = whole_output.moves(arrived, [(src, me) for src in foreign])
        blocks = [block for peer, run in from_between.items() if peer != me for block in run]
        self._unpack = [] if packs else whole_output.moves(unpacked, blocks)
        self._buffers = tuple(comm.empty(nbytes) for nbytes in _scratch(spec, legs))

    def actions(self, out: Array, inp: Array) -> Mapping[str, Callable[[], Work | None]]:
        going, coming = self._buffers
        packs = bool(self._legs[0] == "intra")
        return {
            "pack": _copies([(going, inp, self._pack)]),
            self._legs[0]: self._exchange(0, going if packs else inp, coming),
            "keep": _copies([(out, inp, self._keep)]),
            "permute": _copies(
                [(going, inp, self._own_onwards), (going, coming, self._onwards), (out, coming, self._here)]
            ),
            self._legs[1]: self._exchange(1, going, out if packs else coming),
            "unpack": _copies([(out, coming, self._unpack)]),
        }

    def _exchange(self, leg: int, source: Array, to: Array) -> Callable[[], Work | None]:
        sends = [Message(peer, source[where]) for peer, where in self._sends[leg]]
        recvs = [Message(peer, to[where]) for peer, where in self._recvs[leg]]
        return self._comms[leg].ready("exchange", sends, recvs, step=self._legs[leg])

    def close(self) -> None:
        del self._buffers


_Side = tuple[int, slice]  # of a message: the peer in the group, and where its bytes are


def _copies(groups: list[tuple[Array, Array, list[Move]]]) -> Callable[[], None]:
    views = [(to[move.to], source[move.source]) for to, source, moves in groups for move in moves]

    def copy() -> None:
        for to, source in views:
            to[...] = source

    return copy
