"""pairs: some ranks send their buffer to one other rank each. Round after round every pair of ranks meets once.

`schedule=tournament` is a round-robin of nodes, and of ranks inside them: every rank has one partner, all pairs of a
round are at work at the same time, and a number of rounds that grows with the ranks covers all pairs. Whole nodes meet:
in a round either all ranks of a node talk to those of one other node or none does, half of them sending and half
receiving, so that all pairs share their node's links with equally many others and their times compare.
`schedule=alone` has one pair at work and all others silent; its rounds grow with the square.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

from commbench.collectives.base import Argument, Blocks, round_down
from commbench.data import Block, block_key
from commbench.layout import Layout
from commbench.links import Need, of_messages
from commbench.spec import Arguments, Send, Spec

SCHEDULES = ("tournament", "alone")
DIRECTIONS = ("there", "back", "both")
ALL = "all"


class Peers(NamedTuple):
    """Whom a rank sends to and whom it receives from, if anybody."""

    to: int | None
    source: int | None


class Pairs(Blocks):
    name = "pairs"
    adjoint = "pairs"
    arguments = {
        "schedule": Argument("tournament", "which pairs are at work at the same time", SCHEDULES),
        "round": Argument(0, "which of the schedule's rounds: a number, or all", ("all",), limits=(int, 0, 1 << 40)),
        "direction": Argument("there", "of each pair: there, back, or both at once", DIRECTIONS),
    }

    def variants(self, arguments: Arguments, layout: Layout) -> Iterator[Arguments]:
        if arguments["round"] != ALL:
            yield arguments
            return
        for number in range(rounds(str(arguments["schedule"]), layout)):
            yield {**arguments, "round": number}

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        number, last = int(arguments["round"]), rounds(str(arguments["schedule"]), layout) - 1
        if not 0 <= number <= last:
            raise ValueError(f"round={number}: in a layout of {layout} the rounds are 0 .. {last}")
        return round_down(size_bytes), arguments

    def part_bytes(self, spec: Spec) -> int:
        return spec.size_bytes

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return 0 if peers(spec, rank).to is None else spec.size_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return 0 if peers(spec, rank).source is None else spec.size_bytes

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        if (to := peers(spec, rank).to) is not None:
            yield Block(block_key(seed, rank, to), spec.size_bytes)

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        if (source := peers(spec, rank).source) is not None:
            yield Block(block_key(seed, source, rank), spec.size_bytes)

    def messages(self, spec: Spec) -> list[Send]:
        return [Send(src, dst, spec.size_bytes) for src, dst in directed(spec)]

    def needs(self, spec: Spec) -> list[Need]:
        return of_messages(self.messages(spec), spec.layout)

    def busbw_factor(self, spec: Spec) -> float | None:
        return 1.0


def rounds(schedule: str, layout: Layout) -> int:
    """How many rounds it takes until all pairs have met: N - 1 or N of a tournament, N (N - 1) / 2 alone.

    One rank alone has a round in which nothing happens.
    """
    nodes, m = layout.nodes, layout.ranks_per_node
    if schedule == "alone":
        return max(1, layout.ranks * (layout.ranks - 1) // 2)
    # Of an odd number of nodes one has none to meet; its ranks meet each other then.
    return max(1, _turns(nodes) * m + (0 if nodes > 1 and nodes % 2 else _turns(m)))


def meetings(schedule: str, layout: Layout, number: int) -> list[tuple[int, int]]:
    """The pairs of a round, no rank in two of them: (sender, receiver) of the direction `there`.

    Where whole nodes meet, half of the ranks of each send, so that fewer share a link in one direction.
    """
    if schedule == "alone":
        pair = _unranked(number)
        return [pair] if max(pair) < layout.ranks else []
    nodes, m = layout.nodes, layout.ranks_per_node
    turn, shift = divmod(number, m)
    if turn >= _turns(nodes):
        resting, number = list(range(nodes)), number - _turns(nodes) * m
        met: list[tuple[int, int]] = []
    else:
        met = _circle(nodes, turn)
        resting = [node for node in range(nodes) if not any(node in pair for pair in met)]
        number = shift
    pairs = [(a * m + i, b * m + (i + shift) % m) for a, b in met for i in range(m)]
    pairs = [(dst, src) if src % m % 2 else (src, dst) for src, dst in pairs]
    if number < _turns(m):
        pairs += [(node * m + a, node * m + b) for node in resting for a, b in _circle(m, number)]
    return sorted(pairs)


def directed(spec: Spec) -> list[tuple[int, int]]:
    """(sender, receiver) of each message of a call."""
    return list(_directed(spec.layout, *(spec.arguments[key] for key in Pairs.arguments)))


def peers(spec: Spec, rank: int) -> Peers:
    found = _directed(spec.layout, *(spec.arguments[key] for key in Pairs.arguments))
    to = next((dst for src, dst in found if src == rank), None)
    return Peers(to, next((src for src, dst in found if dst == rank), None))


@functools.lru_cache(maxsize=64)
def _directed(layout: Layout, schedule: str, number: int, direction: str) -> tuple[tuple[int, int], ...]:
    there = meetings(schedule, layout, number)
    back = [(b, a) for a, b in there]
    return tuple({"there": there, "back": back, "both": [*there, *back]}[direction])


def _turns(players: int) -> int:
    """Rounds of a round-robin."""
    return 0 if players < 2 else players - 1 + players % 2


def _circle(players: int, turn: int) -> list[tuple[int, int]]:
    """One round of a round-robin by the circle method: one player stays, the others move on by one place."""
    others = players - 1 + players % 2
    pairs = [(others, turn), *(((turn + i) % others, (turn - i) % others) for i in range(1, (others + 1) // 2))]
    return [(min(pair), max(pair)) for pair in pairs if max(pair) < players]


def _unranked(number: int) -> tuple[int, int]:
    """Pair `number` of (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    high = (math.isqrt(8 * number + 1) + 1) // 2
    return number - high * (high - 1) // 2, high
