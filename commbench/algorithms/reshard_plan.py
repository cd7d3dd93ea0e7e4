"""What the algorithms of `reshard` share: who sends which part of a tensor to whom, and how a plan is run.

A plan is a list of messages in steps, each a range of bytes of one part. The plan is the same on all ranks; a rank
takes from it what it sends and receives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound, ProgramBound
from commbench.algorithms.chunks import slices
from commbench.collectives.meshes import Piece
from commbench.collectives.reshard import cell_bytes, pieces_of
from commbench.layout import Layout
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Message, Work

BALANCE = (1, "which holder of a part sends it: 1: one in the same node, else the least busy; 0: the first")


class Cast(NamedTuple):
    """One part from a holder to ranks that lack it: the ranks of each node together, the sender's own node first."""

    piece: int
    sender: int
    nodes: tuple[tuple[int, ...], ...]

    @property
    def receivers(self) -> tuple[int, ...]:
        return tuple(rank for ranks in self.nodes for rank in ranks)


class PartHop(NamedTuple):
    """A message of a plan: `part` is a range of bytes of the part of the tensor."""

    step: str
    src: int
    dst: int
    piece: int
    part: slice


Sized = Sequence[tuple[Piece, int]]  # parts with their bytes


def casts(sized: Sized, layout: Layout, *, balance: bool) -> list[Cast]:
    """Return who sends each part to whom.

    With `balance` a node that has a holder is served from inside, and of the holders that could send a part to other
    nodes the one sends it whose node, then who itself, has the least to send: parts with the most to send come first.
    """
    busy: Counter[tuple[str, int]] = Counter()  # bytes that a node, or a rank, sends
    found: list[Cast] = []

    def cast(number: int, holders: Sequence[int], ranks: Sequence[int], nbytes: int) -> None:
        by_node: dict[int, list[int]] = {}
        for rank in ranks:
            by_node.setdefault(layout.node(rank), []).append(rank)
        sender = min(holders, key=lambda rank: (busy["node", layout.node(rank)], busy["rank", rank], rank))
        sender = sender if balance else holders[0]
        home = layout.node(sender)
        turned = sorted(by_node, key=lambda node: (node != home, (node - number) % layout.nodes))
        if {*by_node} - {home}:
            busy["node", home] += nbytes
        busy["rank", sender] += nbytes
        found.append(Cast(number, sender, tuple(tuple(by_node[node]) for node in turned)))

    order = sorted(range(len(sized)), key=lambda number: -sized[number][1] * len(sized[number][0].lacking))
    for number in order:
        piece, nbytes = sized[number]
        lacking = piece.lacking
        if not (lacking and nbytes):
            continue
        local: dict[int, list[int]] = {}
        if balance:
            for rank in lacking:
                if any(layout.node(rank) == layout.node(holder) for holder in piece.holders):
                    local.setdefault(layout.node(rank), []).append(rank)
        for node, ranks in local.items():
            cast(number, [rank for rank in piece.holders if layout.node(rank) == node], ranks, nbytes)
        if rest := [rank for rank in lacking if layout.node(rank) not in local]:
            cast(number, piece.holders, rest, nbytes)
    return found


class Planned(AlgorithmBase):
    """An algorithm of `reshard`: its messages are all there is to say."""

    collective = "reshard"

    def hops(self, sized: Sized, layout: Layout, params: Mapping[str, int]) -> list[PartHop]:
        """Return the messages, in the order of their steps."""
        raise NotImplementedError

    def steps(self, spec: Spec) -> list[Step]:
        by_step: dict[str, list[Send]] = {}
        for hop in self.hops(sized_of(spec), spec.layout, spec.params):
            by_step.setdefault(hop.step, []).append(Send(hop.src, hop.dst, hop.part.stop - hop.part.start))
        names = [*by_step]
        before = dict(zip(names[1:], names, strict=False))
        return [
            Step(name=name, sends=tuple(sends), after=(before[name],) if name in before else ())
            for name, sends in by_step.items()
        ]

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return bind_plan(comm, sized_of(spec), self.hops(sized_of(spec), spec.layout, spec.params))


def sized_of(spec: Spec) -> list[tuple[Piece, int]]:
    """Return the parts of a call's tensor, with their bytes."""
    each = cell_bytes(spec)
    return [(piece, piece.elements * each) for piece in pieces_of(spec)]


def bind_plan(comm: Comm, sized: Sized, hops: Sequence[PartHop]) -> Bound:
    """Return the plan bound to a communicator: input and output have this rank's parts, in their order."""
    return _Bound(comm, sized, hops)


class _Bound(ProgramBound):
    def __init__(self, comm: Comm, sized: Sized, hops: Sequence[PartHop]) -> None:
        me, self._comm = comm.rank, comm
        self._at_input, self._at_output = (
            _places(sized, lambda piece: me in piece.holders),
            _places(sized, lambda piece: me in piece.receivers),
        )
        self._own = [number for number in self._at_output if number in self._at_input]
        # All ranks go through all steps, also those in which one has nothing to do.
        self._hops: dict[str, list[PartHop]] = {hop.step: [] for hop in hops}
        for hop in hops:
            if me in (hop.src, hop.dst):
                self._hops[hop.step].append(hop)
        order = [name for step in self._hops for name in (step, WAIT)]
        super().__init__([*order[:1], "own", *order[1:]])

    def actions(self, out: Array, inp: Array) -> dict[str, Callable[[], Work | None]]:
        me = self._comm.rank

        def at(hop: PartHop) -> Array:
            # What has come is sent on from where it lies.
            place, buffer = (
                (self._at_input[hop.piece], inp) if hop.piece in self._at_input else (self._at_output[hop.piece], out)
            )
            return buffer[place.start + hop.part.start : place.start + hop.part.stop]

        def exchange(step: str) -> Callable[[], Work]:
            sends = [Message(hop.dst, at(hop)) for hop in self._hops[step] if hop.src == me]
            recvs = [Message(hop.src, at(hop)) for hop in self._hops[step] if hop.dst == me]
            return lambda: self._comm.exchange(sends, recvs, step=step)

        def own() -> None:
            for number in self._own:
                out[self._at_output[number]] = inp[self._at_input[number]]

        return {step: exchange(step) for step in self._hops} | {"own": own}


def _places(sized: Sized, there: Callable[[Piece], bool]) -> dict[int, slice]:
    """Return where each part that is there lies, one after the other."""
    numbers = [number for number, (piece, _) in enumerate(sized) if there(piece)]
    return dict(zip(numbers, slices([sized[number][1] for number in numbers]), strict=True))
