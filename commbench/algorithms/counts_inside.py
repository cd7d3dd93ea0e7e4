"""Uneven exchanges of which a rank knows its own counts only: each first message carries what its receiver needs.

A program that calls an all-to-all with splits says what this rank sends to each other, and what it gets from each. That
is all that `pairwise` needs. In two levels a rank in between also needs to know how long the blocks are that it passes
on: who sends them writes that in front, in the same message. How long such a message is its receiver cannot know, so it
makes room for half as much again as came before; what is beyond that goes in a second message. Both ends have seen the
same messages, so they agree on the room.

Every message also has a size in front: the most that any rank sends or gets in this call, as far as its sender knows.
After the last one all ranks know the same, as an exchange of counts would have told them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from commbench.algorithms.chunks import slices
from commbench.spec import Spec
from commbench.transports.base import Array, Comm, Message, Work

WORD = 8  # bytes of a number in front of a message
_REMEMBERED = 16  # messages of a way, whose largest says how much room the next one gets
_LEAST_ROOM = 4096


class _TwoLevelsInside:
    """Two exchanges, `legs`: each rank sends to those in between what they pass on to their other group."""

    legs: tuple[str, str]

    def __init__(self, comm: Comm, spec: Spec) -> None:
        layout = spec.layout
        groups = {"intra": layout.node_groups(), "inter": layout.rails()}
        partitions = [groups[leg] for leg in self.legs]
        first, second = ({rank: group for group in one for rank in group} for one in partitions)
        self._comm, me = comm, comm.rank
        self._between, self._onwards = first[me], second[me]  # who passes on for this rank, and to whom this one does
        self._ends = {peer: second[peer] for peer in first[me] if peer != me}  # whom a rank in between sends on to
        self._sources = {peer: first[peer] for peer in second[me] if peer != me}  # for whom a rank in between sends on
        self._comms = [comm.subgroup(partition) for partition in partitions]
        self._rooms_sent = {peer: _Room() for peer in self._ends}
        self._rooms_got = {peer: _Room() for peer in self._ends}
        self._head = 1 + len(self._onwards)  # numbers in front of a message of the first leg

    def run(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int]) -> int:
        me = self._comm.rank
        at_out, at_in = slices(received), slices(sent)
        size = call_size(received, sent)
        blocks = {(me, to): inp[at_in[to]] for to in self._onwards}  # by sender and receiver
        for peer, message in self._first_leg(inp, at_in, sent, size).items():
            theirs, *lengths = numbers_of(self._comm, message, self._head)
            size = max(size, theirs)
            places = slices([self._head * WORD, *lengths])[1:]
            blocks |= {(peer, to): message[where] for to, where in zip(self._onwards, places, strict=True)}
        for source in self._between:
            out[at_out[source]] = blocks[source, me]
        for peer, message in self._second_leg(blocks, received, size).items():
            size = max(size, *numbers_of(self._comm, message, 1))
            places = slices([WORD, *(received[source] for source in self._sources[peer])])[1:]
            for source, where in zip(self._sources[peer], places, strict=True):
                out[at_out[source]] = message[where]
        return size

    def _first_leg(self, inp: Array, at: Sequence[slice], sent: Sequence[int], size: int) -> dict[int, Array]:
        """Send to each rank in between; return what has come to this one to be passed on, by sender."""
        sends: list[tuple[int, Array]] = []
        for peer, ends in self._ends.items():
            message = packed(self._comm, [size, *(sent[to] for to in ends)], [inp[at[to]] for to in ends])
            nbytes, room = self._head * WORD + sum(sent[to] for to in ends), self._rooms_sent[peer]
            cut = room.take(nbytes)
            sends += [(peer, message[:cut]), *([(peer, message[cut:])] if nbytes > cut else [])]
        arrived = {peer: self._comm.empty(room.nbytes) for peer, room in self._rooms_got.items()}
        come, gone = self._exchange(0, [], arrived.items()), self._exchange(0, sends, [])
        come.wait()
        rests: list[tuple[int, Array]] = []
        for peer, message in arrived.items():
            total = self._head * WORD + sum(numbers_of(self._comm, message, self._head)[1:])
            cut = self._rooms_got[peer].take(total)
            if total > cut:
                arrived[peer] = whole = self._comm.empty(total)
                whole[:cut] = message
                rests.append((peer, whole[cut:]))
        self._exchange(0, [], rests).wait()
        gone.wait()
        return arrived

    def _second_leg(self, blocks: dict[tuple[int, int], Array], received: Sequence[int], size: int) -> dict[int, Array]:
        """Pass on what is for others; return what has come for this rank, by the rank in between."""
        sends = [(to, packed(self._comm, [size], [blocks[of, to] for of in self._between])) for to in self._sources]
        arrived = {
            peer: self._comm.empty(WORD + sum(received[source] for source in sources))
            for peer, sources in self._sources.items()
        }
        self._exchange(1, sends, arrived.items()).wait()
        return arrived

    def _exchange(self, leg: int, sends: Iterable[tuple[int, Array]], recvs: Iterable[tuple[int, Array]]) -> Work:
        group = (self._between, self._onwards)[leg]
        to, of = ([Message(group.index(peer), array) for peer, array in side] for side in (sends, recvs))
        return self._comms[leg].exchange(to, of, step=self.legs[leg])


class IntraFirstInside(_TwoLevelsInside):
    legs = ("intra", "inter")


class InterFirstInside(_TwoLevelsInside):
    legs = ("inter", "intra")


class _Room:
    """How long the first message of a call may be, from one rank to another: both have seen the same ones."""

    def __init__(self) -> None:
        self._seen = deque([0], maxlen=_REMEMBERED)

    @property
    def nbytes(self) -> int:
        return max(_LEAST_ROOM, max(self._seen) * 3 // 2)

    def take(self, nbytes: int) -> int:
        """Return the room for a call's `nbytes`, which the next ones remember."""
        room = self.nbytes
        self._seen.append(nbytes)
        return room


def call_size(received: Sequence[int], sent: Sequence[int]) -> int:
    return max(sum(received), sum(sent))


def packed(comm: Comm, numbers: Sequence[int], blocks: Sequence[Array]) -> Array:
    """Return a message: the numbers, and the blocks after them."""
    places = slices([len(numbers) * WORD, *map(len, blocks)])
    message = comm.empty(places[-1].stop)
    comm.write(message, np.array(numbers, dtype=np.int64).view(np.uint8))
    for where, block in zip(places[1:], blocks, strict=True):
        message[where] = block
    return message


def numbers_of(comm: Comm, message: Array, count: int) -> list[int]:
    """Return the numbers in front of a message."""
    found: list[int] = comm.read(message[: count * WORD]).view(np.int64).tolist()
    return found
