"""Which row goes where: the plan of a dispatch on one rank, hop by hop, from the experts of its tokens.

A dispatch is one or more hops, each an exchange in groups of ranks (a `Leg`). What a rank holds of tokens are *copies*:
a row in some buffer, with its source and all experts that it is for. In a hop each copy goes once to every rank of the
group through which one of its experts is reached. At the end each rank has the rows for its own experts, and puts
them in order. A combine goes the same way back, and adds up where a dispatch has copied.

A rank plans with what it has been told: in a program by the ranks that send to it, in `plans` by its own arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from commbench.collectives import routing
from commbench.collectives.dispatch import NUMBER_BYTES, as_bytes
from commbench.collectives.routing import NONE, Floats, Ints
from commbench.data import Bytes
from commbench.layout import Layout
from commbench.spec import Spec
from commbench.transports.rows import Term

TOKENS = 0  # the buffer of the rank's own tokens; that of hop h is h + 1


class Leg(NamedTuple):
    """The exchange of a hop: in `world`, the `rails` or the `nodes` of a layout.

    chunk: of which chunk of each rank's tokens, from which number of them to which; None: of all tokens.
    """

    name: str
    chunk: int | None = None
    tokens: range = range(0)

    @property
    def step(self) -> str:
        return self.name if self.chunk is None else f"{self.name}-{self.chunk}"

    def which(self, copies: Copies) -> Ints:
        """Return the numbers of those copies that are of its chunk."""
        if self.chunk is None:
            return np.arange(len(copies.token))
        first, end = self.tokens.start, self.tokens.stop
        return np.flatnonzero((first <= copies.token) & (copies.token < end))

    def carries(self, copies: Copies) -> Copies:
        """Return those copies that are of its chunk."""
        return copies if self.chunk is None else copies.of(self.which(copies))

    def groups(self, layout: Layout) -> list[list[int]]:
        if self.name == "world":
            return [list(range(layout.ranks))]
        return layout.rails() if self.name == "rails" else layout.node_groups()

    def peers(self, layout: Layout, me: int, ranks: Ints) -> Ints:
        """Return the places, in the group of rank `me`, of those through whom `ranks` are reached; `NONE`: by nobody.

        ranks: `NONE` where there is no expert.
        """
        m = layout.ranks_per_node
        if self.name == "world":
            return ranks
        if self.name == "rails":
            return np.where(ranks == NONE, NONE, ranks // m)
        return np.where((ranks != NONE) & (ranks // m == me // m), ranks % m, NONE)


WORLD, RAILS, NODES = Leg("world"), Leg("rails"), Leg("nodes")


class Way(NamedTuple):
    """How an algorithm dispatches. per_choice: a copy for each choice of a token, and not one for all of them.

    slots: rows that each rank sends to each other, empty ones too; 0: as many as there are copies.
    """

    legs: tuple[Leg, ...]
    per_choice: bool = False
    slots: int = 0

    @property
    def chunks(self) -> int:
        """Chunks that cross between nodes, each in a hop of its own; 0: this way has no two levels."""
        return sum(leg.name == "rails" for leg in self.legs)

    def rounds(self) -> list[list[int]]:
        """Return hops by number, those together that are made at the same time: of other groups and other chunks."""
        rounds: list[list[int]] = []
        for number, leg in enumerate(self.legs):
            beside = [self.legs[other] for other in rounds[-1]] if rounds else [leg]
            if any(leg.name == other.name or leg.chunk == other.chunk for other in beside):
                rounds.append([])
            rounds[-1].append(number)
        return rounds


class Copies(NamedTuple):
    """Rows that a rank holds, in order: where each is, whose, and its experts, [copies, experts of a copy]."""

    buffer: Ints
    row: Ints
    source: Ints
    token: Ints
    experts: Ints
    weights: Floats

    def of(self, which: Ints) -> Copies:
        source, token = self.source[which], self.token[which]
        return Copies(self.buffer[which], self.row[which], source, token, self.experts[which], self.weights[which])

    def packed(self) -> Bytes:
        """Return what a rank tells of copies that it sends: a row of numbers each."""
        numbers = np.column_stack([self.source, self.token, self.experts]).astype(np.int32)
        return as_bytes(np.column_stack([numbers, self.weights.view(np.int32)]))


def unpacked(told: Bytes, buffer: int) -> Copies:
    """Return copies that have arrived in `buffer` as they were told of: rows of bytes, some of them of empty slots."""
    numbers = np.ascontiguousarray(told).view(np.int32)
    width = (numbers.shape[1] - 2) // 2
    wide, weights = numbers.astype(np.int64), np.ascontiguousarray(numbers[:, 2 + width :]).view(np.float32)
    at = np.full(len(told), buffer), np.arange(len(told))
    arrived = Copies(*at, wide[:, 0], wide[:, 1], wide[:, 2 : 2 + width], weights)
    return arrived.of(np.flatnonzero(arrived.source != EMPTY))


def told_bytes(way: Way, top_k: int) -> int:
    """Return the bytes of what a rank tells of a copy."""
    return NUMBER_BYTES * (2 + 2 * (1 if way.per_choice else top_k))


EMPTY = -1  # the source of a slot that has no row


class Gather(NamedTuple):
    """Rows `source` of a buffer into rows `to` of another."""

    buffer: int
    to: Ints
    source: Ints


class Hop(NamedTuple):
    """Rows to and from each rank of the group, the own one without any, and how those that go are gathered.

    told: what is told of the rows that go; weights: of the one expert of each, where copies have one.
    """

    sent: list[int]
    received: list[int]
    gathers: list[Gather]
    told: Bytes
    weights: Floats


class RankPlan(NamedTuple):
    """The plan of one rank: its hops, how the rows that it ends with come into order, and what is known of each.

    numbers: source, token and experts, a row of bytes each. weights: of the experts, [rows, 1 or top_k].
    """

    hops: list[Hop]
    places: list[Gather]
    numbers: Bytes
    weights: Floats

    def terms(self, way: Way, buffer: int, *, weighted: bool) -> list[Term]:
        """Return what a combine adds up to the rows of a buffer, of which a dispatch has taken copies.

        Their origins are hops, by number, for what has come back in them, and `GIVEN`, for what the combine is given.
        weighted: each choice is multiplied by its weight: before it is sent; by its token's rank, where it comes alone.
        """
        terms = []
        late = weighted and way.per_choice
        for to, place in ((place.source, place) for place in self.places if place.buffer == buffer):
            early = weighted and (buffer == TOKENS or not late)
            terms.append(Term(GIVEN, to, place.to, self.weights[place.to, 0] if early else None))
        for number, hop in enumerate(self.hops):
            for gather in hop.gathers:
                if gather.buffer == buffer:
                    terms.append(Term(number, gather.source, gather.to, hop.weights[gather.to] if late else None))
        return terms


GIVEN = -1  # in place of a hop


class Planner:
    """Makes the plan of one rank: `outgoing` and `incoming` for each leg, and then `plan`."""

    def __init__(self, way: Way, layout: Layout, rank: int, per_rank: int, held: Copies) -> None:
        """held: what the rank has at first. per_rank: experts of a rank."""
        self._way, self._layout, self._rank, self._per_rank = way, layout, rank, per_rank
        self._held = [held]
        self._hops: list[Hop] = []

    def outgoing(self, leg: Leg) -> Hop:
        """Return the hop in which copies go to the ranks of the leg's group. Raises `ValueError` where slots run out.

        What it receives is not known yet.
        """
        held = leg.carries(self._all_held())
        group = next(ranks for ranks in leg.groups(self._layout) if self._rank in ranks)
        peers = leg.peers(self._layout, self._rank, self._ranks(held.experts))
        hits = np.zeros((len(group) + 1, len(held.row)), bool)  # the last one: by nobody
        for choice in peers.T:
            hits[choice, np.arange(len(choice))] = True
        me = group.index(self._rank)
        hits[me] = False
        there, which = np.nonzero(hits[:-1])
        going, sent, to = held.of(which), np.bincount(there, minlength=len(group)), np.arange(len(which))
        if slots := self._way.slots:
            if sent.max(initial=0) > slots:
                raise ValueError(f"rank {self._rank} has {sent.max()} rows for rank {group[sent.argmax()]}, of {slots}")
            first = np.cumsum(sent) - sent
            to += (there - (there > me)) * slots - first[there]
            sent = np.where(np.arange(len(group)) == me, 0, slots)
        told = np.full((int(sent.sum()), going.packed().shape[1]), 0xFF, np.uint8)  # -1 in an empty slot
        told[to] = going.packed()
        weights = np.zeros(len(told), np.float32)
        weights[to] = going.weights[:, 0]
        self._hops.append(Hop(sent.tolist(), [], _gathers(going, to), told, weights))
        return self._hops[-1]

    def incoming(self, told: Bytes, received: Sequence[int], number: int | None = None) -> None:
        """Take what the ranks of the leg's group have told of the rows that they send, `received` by each of them.

        number: of the hop; None: the one that was planned last.
        """
        number = len(self._hops) - 1 if number is None else number
        self._hops[number].received.extend(received)
        self._held.append(unpacked(told, number + 1))

    def plan(self, output: str) -> RankPlan:
        held = self._all_held()
        here = self._ranks(held.experts) == self._rank
        if output == "rank":
            (copy,) = np.nonzero(here.any(axis=1))
            found = held.of(copy)
        else:
            copy, choice = np.nonzero(here)
            found = held.of(copy)
            found = found._replace(
                experts=held.experts[copy, choice][:, None],
                weights=held.weights[copy, choice][:, None],
            )
        by_expert = found.experts[:, 0] if output == "expert" else np.zeros(len(copy), np.int64)
        found = found.of(np.lexsort((found.token, found.source, by_expert)))
        places = _gathers(found, np.arange(len(found.row)))
        numbers = as_bytes(np.column_stack([found.source, found.token, found.experts]).astype(np.int32))
        return RankPlan(self._hops, places, numbers, found.weights)

    def _all_held(self) -> Copies:
        return Copies(*(np.concatenate(columns) for columns in zip(*self._held, strict=True)))

    def _ranks(self, experts: Ints) -> Ints:
        return np.where(experts == NONE, NONE, experts // self._per_rank)


def _gathers(copies: Copies, to: Ints) -> list[Gather]:
    """Return how copies come into rows `to`, from each buffer that some of them are in."""
    found = []
    for buffer in np.unique(copies.buffer).tolist():
        (which,) = np.nonzero(copies.buffer == buffer)
        found.append(Gather(buffer, to[which], copies.row[which]))
    return found


def own_copies(way: Way, rank: int, experts: Ints, weights: Floats) -> Copies:
    """Return the own tokens that have a choice: by expert, where each choice has a copy; else in order.

    experts, weights: [tokens, top_k].
    """
    if way.per_choice:
        token, choice = np.nonzero(experts != NONE)
        order = np.argsort(experts[token, choice], kind="stable")
        token, choice = token[order], choice[order]
        experts, weights = experts[token, choice][:, None], weights[token, choice][:, None]
    else:
        (token,) = np.nonzero((experts != NONE).any(axis=1))
        experts, weights = experts[token], weights[token]
    return Copies(
        np.full(len(token), TOKENS), token, np.full(len(token), rank), token, experts.astype(np.int64), weights
    )


def plans(way: Way, spec: Spec) -> list[RankPlan]:
    """Return the plans of all ranks, by arithmetic alone. Shared: do not write to them."""
    arguments = tuple(sorted(spec.arguments.items()))
    return _plans(way, spec.layout, spec.size_bytes, arguments)


@functools.lru_cache(maxsize=8)
def _plans(
    way: Way, layout: Layout, size_bytes: int, items: tuple[tuple[str, int | float | str], ...]
) -> list[RankPlan]:
    spec = Spec(collective="dispatch", dtype="uint8", size_bytes=size_bytes, layout=layout, arguments=dict(items))
    all_experts, all_weights = routing.routing_of(spec)
    per_rank = routing.shape_of(spec).per_rank
    planners = [
        Planner(way, layout, rank, per_rank, own_copies(way, rank, all_experts[rank], all_weights[rank]))
        for rank in range(layout.ranks)
    ]
    for leg in way.legs:
        told = []
        for planner in planners:
            hop = planner.outgoing(leg)
            told.append(np.split(hop.told, np.cumsum(hop.sent)[:-1]))
        for group in leg.groups(layout):
            for place, rank in enumerate(group):
                of_group = [told[source][place] for source in group]
                planners[rank].incoming(np.concatenate(of_group), [len(rows) for rows in of_group])
    return [planner.plan(str(spec.arguments["output"])) for planner in planners]
