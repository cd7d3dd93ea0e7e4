"""Ranks of a dispatch or combine whose buffers lie in one process, for the kernels of routed.cu: a CPU's or a GPU's."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from commbench_kernels import routed
from commbench_kernels.routed import RowPeers, RowShape

from commbench import collectives
from commbench.collectives import routing
from commbench.spec import Spec
from tests.support.planted_rows import spec_of

SPOILT = 0xA5
_BEYOND = 4096  # of an output, for rows that a mistake brings
Place = Callable[[np.ndarray], int]  # puts an array where the kernels work, for as long as they do: its address


def specs_of(collective: str, ranks: int, routings: int = 3, **asked: Any) -> list[Spec]:
    """Return a spec for each of some routings."""
    asked = {"top_k": 3, "experts": 4 * ranks, "model_dim": 24, "tokens": 13, **asked}
    if collective == "dispatch":
        asked.setdefault("counts", "device")
    first = asked.pop("router_seed", 0)
    return [spec_of(collective, "per_rank", 1, ranks, router_seed=first + one, **asked) for one in range(routings)]


def shape_of(spec: Spec) -> RowShape:
    shape, by_expert = routing.shape_of(spec), spec.arguments["output"] == "expert"
    return RowShape(ranks=shape.ranks, tokens=shape.tokens, top_k=shape.top_k, per_rank=shape.per_rank,
                    row_bytes=shape.row_bytes, by_expert=by_expert)  # fmt: skip


class RoutedRanks:
    """Calls of different data and routing: `calls[number][rank]`, which makes `expected[number][rank]`."""

    def __init__(self, specs: Sequence[Spec], place: Place, *, slots: bool = False, blocks: int = 3) -> None:
        self.ranks, self.slots, self.blocks = specs[0].ranks, slots, blocks
        self.of, self._place = collectives.get(specs[0].collective), place
        dispatches = self.of.name == "dispatch"
        self.kernel = ("dispatch_slots" if slots else "dispatch") if dispatches else f"combine_{specs[0].dtype}"
        sizes = [[self.of.output_bytes(spec, rank) for rank in range(self.ranks)] for spec in specs]
        self.out_bytes = [max(column) for column in zip(*sizes, strict=True)]
        self.outs = [place(np.full(size + _BEYOND, SPOILT, np.uint8)) for size in self.out_bytes]
        shapes = [shape_of(spec) for spec in specs]
        needed = max(
            shape.dispatch_scratch(blocks, slots=slots) if dispatches else shape.combine_scratch(slots=slots)
            for shape in shapes
        )
        self.areas = [-(-place(np.zeros(needed + 15, np.uint8)) // 16) * 16 for _ in range(self.ranks)]
        self.calls: list[list[ctypes.Structure]] = []
        self.expected: list[list[np.ndarray]] = []
        make = self._dispatch if dispatches else self._combine
        for salt, (spec, shape) in enumerate(zip(specs, shapes, strict=True), start=1):
            inputs = [self.of.input_pattern(spec, rank, seed=3).whole(salt) for rank in range(self.ranks)]
            self.calls.append([make(spec, shape, rank, inp) for rank, inp in enumerate(inputs)])
            right = [self.of.expected_pattern(spec, rank, seed=3).whole(salt) for rank in range(self.ranks)]
            self.expected.append(right)

    def knows(self, rank: int, what: str, numbers: np.ndarray) -> np.ndarray:
        """Return what `rank` is given of its rows, weights, experts, places or senders; a saboteur gives other ones."""
        return numbers

    def _given(self, rank: int, what: str, numbers: np.ndarray) -> int:
        return self._place(np.ascontiguousarray(self.knows(rank, what, numbers)))

    def _peers(self, rank: int, rows: int) -> RowPeers:
        return RowPeers(rank=rank, outs=self.outs, scratches=self.areas, rows=rows)

    def _dispatch(self, spec: Spec, shape: RowShape, rank: int, inp: np.ndarray) -> ctypes.Structure:
        choices = shape.tokens, shape.top_k
        rows, said = np.split(inp, [spec.size_bytes])
        given = self._given(rank, "rows", rows.reshape(shape.tokens, -1))
        known = routing.routing_of(spec).experts[rank]
        weights = 0
        if len(said):
            weights = self._given(rank, "weights", said[: known.nbytes].view(np.uint32).reshape(choices))
            known = said[known.nbytes :].view(np.int32).reshape(choices)
        experts = self._given(rank, "experts", known)
        return routed.dispatch_argument(shape, self._peers(rank, given), experts=experts, weights=weights)

    def _combine(self, spec: Spec, shape: RowShape, rank: int, inp: np.ndarray) -> ctypes.Structure:
        experts, weights = routing.routing_of(spec)
        rows = self._given(rank, "rows", inp.reshape(-1, shape.row_bytes))
        places = self._given(rank, "places", routed.places(experts, rank, shape))
        senders = self._given(rank, "senders", routed.senders(experts, shape))
        return routed.combine_argument(
            shape, self._peers(rank, rows), places=places, senders=senders, slots=self.slots, blocks=self.blocks,
            weights=self._given(rank, "weights", weights) if shape.by_expert else 0,
        )  # fmt: skip


KINDS = {
    "dispatch": ("twice", "missing", "expert", "weight"),
    "combine": ("twice", "row", "short", "weight", "stale"),
}


class SabotagedRanks(RoutedRanks):
    """Ranks of which one is given wrong numbers in one of its calls, by which its kernel makes a mistake."""

    def __init__(self, kind: str, saboteur: int, seed: int, *given: Any, **asked: Any) -> None:
        self._kind, self._saboteur, self._draw, self.struck = kind, saboteur, random.Random(seed), False
        self._read: np.ndarray | None = None
        super().__init__(*given, **asked)

    def knows(self, rank: int, what: str, numbers: np.ndarray) -> np.ndarray:
        mistakes = {
            "twice": ("rows", self._twice), "missing": ("experts", self._without), "expert": ("experts", self._swapped),
            "weight": ("weights", self._swapped), "row": ("places", self._swapped), "short": ("places", self._without),
            "stale": ("senders", self._unsent),
        }  # fmt: skip
        about, spoil = mistakes[self._kind]
        if rank == self._saboteur and what == "places":
            self._read = np.flatnonzero(numbers != routed.NONE)  # the weights of other choices are not looked at
        if rank != self._saboteur or what != about or self.struck:
            return numbers
        spoilt = numbers.copy()
        spoil(spoilt)
        self.struck = bool((spoilt != numbers).any())
        return spoilt

    def _twice(self, rows: np.ndarray) -> None:
        """One row is another one again."""
        if len(rows) > 1:
            one, other = self._draw.sample(range(len(rows)), 2)
            rows[one] = rows[other]

    def _swapped(self, numbers: np.ndarray) -> None:
        """Choices of two tokens have each other's expert, weight or row."""
        there = self._there(numbers).tolist()
        one = self._draw.choice(there) if there else 0
        others = [other for other in there if other // numbers.shape[-1] != one // numbers.shape[-1]]
        other = self._draw.choice(others) if others else one
        flat = numbers.reshape(-1)
        flat[[one, other]] = flat[[other, one]]

    def _without(self, numbers: np.ndarray) -> None:
        """A choice is left out."""
        if len(there := self._there(numbers)):
            numbers.reshape(-1)[self._draw.choice(there.tolist())] = routed.NONE

    def _unsent(self, senders: np.ndarray) -> None:
        """This rank does not send a token's part to another."""
        bit = np.uint32(1 << self._saboteur)
        others = np.delete(np.arange(len(senders)), self._saboteur)
        source, token = np.nonzero(senders[others] & bit)
        if len(source):
            at = self._draw.randrange(len(source))
            senders[others[source[at]], token[at]] &= ~bit

    def _there(self, numbers: np.ndarray) -> np.ndarray:
        read = self._read if self._kind == "weight" else None
        return np.flatnonzero(numbers.astype(np.int64) != routed.NONE) if read is None else read


def sabotaged(number: int, place: Place) -> SabotagedRanks:
    """Return ranks of which one makes the mistake of this number."""
    collective = ("dispatch", "combine")[number % 2]
    kind = KINDS[collective][number // 2 % len(KINDS[collective])]
    output = "expert" if kind == "weight" else ("expert", "rank")[number // 20 % 2]
    specs = specs_of(collective, 2 + number % 3 // 2, routings=2, output=output, tokens=7, router_seed=number)
    slots = bool(number // 40 % 2)
    return SabotagedRanks(kind, number % 2, number, specs, place, slots=slots, blocks=1 + number % 3)
