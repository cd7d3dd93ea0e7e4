"""Moves rows of tokens as a plan says: what the algorithms of `dispatch` and `combine` share that send copies in hops.

A dispatch that does not know its routing beforehand exchanges how many rows come from whom, and then together with the
rows what is to be known of them: source, token, experts, weights. The counts stop the host, so that on two levels they
are exchanged once for all hops: a rank knows whom its tokens reach, and through whom.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound, BoundBase, steps_in_order
from commbench.algorithms.quantised import packing, unpacking
from commbench.algorithms.token_counts import counts_ahead, received_ahead
from commbench.algorithms.token_plan import (
    TOKENS,
    Copies,
    Gather,
    Hop,
    Planner,
    RankPlan,
    Way,
    own_copies,
    plans,
    told_bytes,
)
from commbench.collectives import routing
from commbench.collectives.combine import TokenCombine
from commbench.collectives.dispatch import NUMBER_BYTES, cached
from commbench.collectives.payload import payload_of
from commbench.data import Bytes
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Done, Message, Work, Works

_COUNT_BYTES = 8
_AHEAD = "counts_world"  # the step in which ranks tell each other what all hops bring


class _Room(NamedTuple):
    """Rows that a hop sends and receives, at the most, and the ranks of its group."""

    sent: int
    received: int
    ranks: int


def _rooms(way: Way, spec: Spec) -> list[_Room]:
    of_ranks = plans(way, spec)
    rooms = []
    for number, leg in enumerate(way.legs):
        hops = [plan.hops[number] for plan in of_ranks]
        most = max(sum(hop.sent) for hop in hops), max(sum(hop.received) for hop in hops)
        rooms.append(_Room(*most, len(leg.groups(spec.layout)[0])))
    return rooms


class _Hopping(AlgorithmBase):
    """An algorithm that sends copies of rows in the hops of its way."""

    name: str
    way: Way

    def way_of(self, spec: Spec) -> Way:
        """Return the way, with what the parameters say of it."""
        return self.way

    def unsupported(self, spec: Spec) -> str:
        if spec.arguments.get("counts") == "device":
            return f"{self.name} reads counts on the host; counts=device is for algorithms whose GPUs alone know them"
        return ""

    def hop_sends(self, spec: Spec, number: int) -> list[tuple[int, int, int]]:
        """Return (source, target, rows) of what a hop sends."""
        way = self.way_of(spec)
        groups, of_ranks = way.legs[number].groups(spec.layout), plans(way, spec)
        return [
            (src, dst, rows)
            for group in groups
            for src in group
            for dst, rows in zip(group, of_ranks[src].hops[number].sent, strict=True)
            if rows
        ]


class HoppingDispatch(_Hopping):
    collective = "dispatch"

    def steps(self, spec: Spec) -> list[Step]:
        shape, host, way = routing.shape_of(spec), not cached(spec), self.way_of(spec)
        told = told_bytes(way, shape.top_k)
        sends: dict[str, tuple[Send, ...]] = {}
        order: list[str] = []
        if host and way.chunks:
            ranks = range(spec.ranks)
            sends[_AHEAD] = tuple(Send(s, d, _ahead_bytes(way)) for s in ranks for d in ranks if s != d)
            order += [_AHEAD, WAIT]
        for numbers in way.rounds():
            for number in numbers:
                leg, rows = way.legs[number], self.hop_sends(spec, number)
                if host and not way.slots and not way.chunks:
                    counts, groups = f"counts_{leg.step}", leg.groups(spec.layout)
                    pairs = [(src, dst) for group in groups for src in group for dst in group if src != dst]
                    sends[counts] = tuple(Send(src, dst, _COUNT_BYTES) for src, dst in pairs)
                    order += [counts, WAIT]
                sizes = (shape.row_bytes, told) if host else (shape.row_bytes,)
                sends[leg.step] = tuple(Send(src, dst, count * size) for size in sizes for src, dst, count in rows)
            order += _beside(way, numbers)
        return steps_in_order(order, sends)

    def scratch_bytes(self, spec: Spec) -> int:
        way = self.way_of(spec)
        ahead = 0 if cached(spec) else 2 * spec.ranks * _ahead_bytes(way)
        return ahead + sum(map(sum, _dispatch_scratch(way, spec)))

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return (_CachedDispatch if cached(spec) else _Dispatch)(comm, spec, self.way_of(spec))


class HoppingCombine(_Hopping):
    collective = "combine"

    def steps(self, spec: Spec) -> list[Step]:
        row, way = _wire_row(spec), self.way_of(spec)
        order = [name for numbers in reversed(way.rounds()) for name in _beside(way, numbers)]
        sends = {
            leg.step: tuple(Send(dst, src, count * row) for src, dst, count in self.hop_sends(spec, number))
            for number, leg in enumerate(way.legs)
        }
        return steps_in_order(order, sends)

    def scratch_bytes(self, spec: Spec) -> int:
        row = routing.shape_of(spec).row_bytes + (0 if payload_of(spec) is None else _wire_row(spec))
        return sum((room.sent + room.received) * row for room in _rooms(self.way_of(spec), spec))

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Combine(comm, spec, self.way_of(spec))


def _ahead_bytes(way: Way) -> int:
    """Return the bytes of what a rank tells each other one before any row moves."""
    return 2 * way.chunks * _COUNT_BYTES


def _wire_row(spec: Spec) -> int:
    """Return the bytes of a row as it travels in a combine, whose ranks make numbers of it to add them up."""
    return routing.shape_of(TokenCombine().travelling(spec)).row_bytes


def _beside(way: Way, numbers: Sequence[int]) -> list[str]:
    """Return the part of an order in which hops are in flight together."""
    return [way.legs[number].step for number in numbers] + [WAIT] * len(numbers)


def _dispatch_scratch(way: Way, spec: Spec) -> list[tuple[int, ...]]:
    """Bytes of the buffers of each hop: rows and what is told of them, sent and received, and counts of both."""
    shape, told = routing.shape_of(spec), told_bytes(way, routing.shape_of(spec).top_k)
    host = not cached(spec)
    alone = not way.slots and not way.chunks  # whether each hop has its counts in front of it
    return [
        (room.sent * shape.row_bytes, room.received * shape.row_bytes)
        + (
            (
                room.sent * told,
                room.received * told,
                *(2 * [room.ranks * _COUNT_BYTES * alone]),
            )
            if host
            else ()
        )
        for room in _rooms(way, spec)
    ]


def matrix(buffer: Array, rows: int, row_bytes: int) -> Array:
    """Return the first rows of a flat buffer as a matrix that shares its memory."""
    return buffer[: rows * row_bytes].reshape(rows, row_bytes)


def _messages(buffer: Array, counts: Sequence[int], row_bytes: int) -> list[Message]:
    """Return a message for each rank that there are rows for, or from, one after the other in `buffer`."""
    edges = itertools.accumulate(counts, initial=0)
    places = [slice(start * row_bytes, end * row_bytes) for start, end in itertools.pairwise(edges)]
    return [Message(peer, buffer[at]) for peer, at in enumerate(places) if at.start != at.stop]


class Copying(NamedTuple):
    """Rows `source` of what is held in a buffer into rows `to` of another; None: into all of them, in order."""

    buffer: int
    to: Any
    source: Any


def _copies(comm: Comm, gathers: Iterable[Gather], count: int) -> list[Copying]:
    """Return gathers into a buffer of `count` rows, ready to be made."""
    places = comm.rows.places
    return [
        Copying(part.buffer, None if len(part.to) == count else places(part.to), places(part.source))
        for part in gathers
    ]


def placed(comm: Comm, plan: RankPlan) -> list[Copying]:
    """Return how rows that a rank holds come into the order of the output, ready to be made."""
    return _copies(comm, plan.places, len(plan.numbers))


def said(plan: RankPlan) -> Bytes:
    """Return what an output says of its rows, as it lies behind them."""
    return np.concatenate([plan.weights.reshape(-1).view(np.uint8), plan.numbers.reshape(-1)])


def make_copies(comm: Comm, copies: Iterable[Copying], out: Array, held: Sequence[Array]) -> None:
    for copy in copies:
        comm.rows.copy(out, copy.to, held[copy.buffer], copy.source)


class _CachedDispatch(BoundBase):
    """A dispatch whose routing all ranks know: rows are all that moves, and nothing looks at them."""

    def __init__(self, comm: Comm, spec: Spec, way: Way) -> None:
        self._shape, self._way, self._comm = routing.shape_of(spec), way, comm
        self._plan = plan = plans(way, spec)[comm.rank]
        self._comms = [comm.subgroup(leg.groups(spec.layout)) for leg in way.legs]
        self._buffers = [[comm.empty(nbytes) for nbytes in sizes] for sizes in _dispatch_scratch(way, spec)]
        self._gathers = [_copies(comm, hop.gathers, sum(hop.sent)) for hop in plan.hops]
        self._places = placed(comm, plan)

    def start(self, out: Array, inp: Array) -> Work:
        row, hops = self._shape.row_bytes, self._plan.hops
        held = [matrix(inp, self._shape.tokens, row)]
        held += [arriving.reshape(-1, row) for _, arriving in self._buffers]
        for numbers in self._way.rounds():
            works = []
            for number in numbers:
                comm, hop, (going, arriving) = self._comms[number], hops[number], self._buffers[number]
                make_copies(comm, self._gathers[number], matrix(going, sum(hop.sent), row), held)
                sends, recvs = _messages(going, hop.sent, row), _messages(arriving, hop.received, row)
                works.append(comm.exchange(sends, recvs, step=self._way.legs[number].step))
            Works(works).wait()
        make_copies(self._comm, self._places, matrix(out, len(self._plan.numbers), row), held)
        return Done()

    def close(self) -> None:
        del self._buffers


class _Dispatch(BoundBase):
    """A dispatch that plans in each call, from what the input and the other ranks say of the routing."""

    capturable = False

    def __init__(self, comm: Comm, spec: Spec, way: Way) -> None:
        self._shape, self._way, self._comm, self._spec = routing.shape_of(spec), way, comm, spec
        self._told = told_bytes(way, self._shape.top_k)
        self._comms = [comm.subgroup(leg.groups(spec.layout)) for leg in way.legs]
        self._buffers = [[comm.empty(nbytes) for nbytes in sizes] for sizes in _dispatch_scratch(way, spec)]
        self._ahead = [comm.empty(spec.ranks * _ahead_bytes(way)) for _ in range(2)]
        self._received: list[list[int]] = []

    def start(self, out: Array, inp: Array) -> Work:
        shape, comm = self._shape, self._comm
        at_weights = shape.tokens * shape.row_bytes
        at_experts = at_weights + shape.tokens * shape.top_k * NUMBER_BYTES
        by_token = shape.tokens, shape.top_k
        weights = comm.read(inp[at_weights:at_experts]).view(np.float32).reshape(by_token)
        experts = comm.read(inp[at_experts:]).view(np.int32).astype(np.int64).reshape(by_token)
        held_first = own_copies(self._way, comm.rank, experts, weights)
        planner = Planner(self._way, self._spec.layout, comm.rank, shape.per_rank, held_first)
        if self._way.chunks:
            self._received = self._count_ahead(held_first)
        held = [matrix(inp, shape.tokens, shape.row_bytes)]
        held += [arriving.reshape(-1, shape.row_bytes) for _, arriving, *_ in self._buffers]
        for numbers in self._way.rounds():
            going = [self._counted(planner, number) for number in numbers]
            works = [self._exchange(number, hop, held) for number, hop in zip(numbers, going, strict=True)]
            Works(works).wait()
            for number, hop in zip(numbers, going, strict=True):
                told = matrix(self._buffers[number][3], sum(hop.received), self._told)
                planner.incoming(comm.read(told), hop.received, number)
        plan = planner.plan(str(self._spec.arguments["output"]))
        count = len(plan.numbers)
        make_copies(comm, placed(comm, plan), matrix(out, count, shape.row_bytes), held)
        comm.write(out[count * shape.row_bytes :], said(plan))
        return Done()

    def _count_ahead(self, own: Copies) -> list[list[int]]:
        """Return for each hop how many rows come from each rank."""
        comm, where = self._comm, (self._way, self._spec.layout, self._comm.rank)
        going, arriving = self._ahead
        comm.write(going, counts_ahead(*where, self._shape.per_rank, own).reshape(-1).view(np.uint8))
        comm.all_to_all(arriving, going, step=_AHEAD).wait()
        return received_ahead(*where, comm.read(arriving).view(np.int64).reshape(comm.size, -1))

    def _counted(self, planner: Planner, number: int) -> Hop:
        """Plan a hop, and return it once it is known how many rows come from each rank."""
        leg, comm, (*_, counts, counts_arriving) = self._way.legs[number], self._comms[number], self._buffers[number]
        hop = planner.outgoing(leg)
        if self._way.slots:
            return hop._replace(received=hop.sent)  # as many to each as from each
        if self._way.chunks:
            return hop._replace(received=self._received[number])
        comm.write(counts, np.array(hop.sent, np.int64).view(np.uint8))
        comm.all_to_all(counts_arriving, counts, step=f"counts_{leg.step}").wait()
        return hop._replace(received=comm.read(counts_arriving).view(np.int64).tolist())

    def _exchange(self, number: int, hop: Hop, held: list[Array]) -> Work:
        comm, row, told = self._comms[number], self._shape.row_bytes, self._told
        going, arriving, told_going, told_arriving, *_ = self._buffers[number]
        count = sum(hop.sent)
        comm.write(told_going, hop.told.reshape(-1))
        make_copies(comm, _copies(comm, hop.gathers, count), matrix(going, count, row), held)
        return comm.exchange(
            _messages(told_going, hop.sent, told) + _messages(going, hop.sent, row),
            _messages(told_arriving, hop.received, told) + _messages(arriving, hop.received, row),
            step=self._way.legs[number].step,
        )

    def close(self) -> None:
        del self._buffers, self._ahead


class _Combine(BoundBase):
    """The way back of a dispatch, whose plan all ranks know: what was copied there is added up here."""

    def __init__(self, comm: Comm, spec: Spec, way: Way) -> None:
        self._shape, self._way, self._comm, self._dtype = routing.shape_of(spec), way, comm, spec.dtype
        self._plan = plan = plans(way, spec)[comm.rank]
        self._comms = [comm.subgroup(leg.groups(spec.layout)) for leg in way.legs]
        row, rooms = self._shape.row_bytes, _rooms(way, spec)
        self._buffers = [(comm.empty(room.received * row), comm.empty(room.sent * row)) for room in rooms]
        self._payload, self._wire_row, self._wires = payload_of(spec), _wire_row(spec), self._buffers
        if self._payload is not None:
            sizes = [(room.received * self._wire_row, room.sent * self._wire_row) for room in rooms]
            self._wires = [(comm.empty(going), comm.empty(back)) for going, back in sizes]
        weighted = spec.arguments["output"] == "expert"
        counts = [self._shape.tokens, *(sum(hop.received) for hop in plan.hops)]
        self._sums = [
            comm.rows.sums(count, plan.terms(way, buffer, weighted=weighted)) for buffer, count in enumerate(counts)
        ]

    def start(self, out: Array, inp: Array) -> Work:
        row, wire_row, hops = self._shape.row_bytes, self._wire_row, self._plan.hops
        # By hop, what has come back, and last what is given: `GIVEN` is the last one.
        origins = [matrix(back, sum(hop.sent), row) for (_, back), hop in zip(self._buffers, hops, strict=True)]
        origins.append(matrix(inp, len(self._plan.numbers), row))
        for numbers in reversed(self._way.rounds()):
            works = []
            for number in numbers:
                comm, hop, (going, back) = self._comms[number], hops[number], self._wires[number]
                count = sum(hop.received)
                partial = matrix(self._buffers[number][0], count, row)
                comm.rows.add(partial, origins, self._sums[number + 1], self._dtype)
                if self._payload is not None:
                    packing(partial, matrix(going, count, wire_row), self._dtype, self._payload)()
                sends, recvs = _messages(going, hop.received, wire_row), _messages(back, hop.sent, wire_row)
                works.append(comm.exchange(sends, recvs, step=self._way.legs[number].step))
            Works(works).wait()
            if self._payload is not None:
                for number in numbers:
                    arrived = matrix(self._wires[number][1], sum(hops[number].sent), wire_row)
                    unpacking(origins[number], arrived, self._dtype, self._payload)()
        tokens = matrix(out, self._shape.tokens, row)
        self._comm.rows.add(tokens, origins, self._sums[TOKENS], self._dtype)
        return Done()

    def close(self) -> None:
        del self._buffers, self._wires
