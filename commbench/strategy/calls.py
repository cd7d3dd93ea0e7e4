"""Calls: exchanges of groups of ranks, all groups at once, as messages and KiB of a rank over each class of link.

All ranks of a group send alike here; a call is one step, or two of which the second waits for the first.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from commbench.stats import Floats
from commbench.strategy.setting import Ints

# Collectives that a sweep measures, by number; 0: none of them. Broadcasts: of each rank's part, one after the other.
ALL_TO_ALL, ALL_GATHER, ALL_REDUCE, BROADCASTS = 1, 2, 3, 4
COLLECTIVES = {"all_to_all": ALL_TO_ALL, "all_gather": ALL_GATHER, "all_reduce": ALL_REDUCE, "broadcast": BROADCASTS}
_KIB = 1024.0
_ROUNDS = 16  # of a ring: as many at the most are steps of their own; libraries take trees for more ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGroups:
    """PeerGroups of `size` ranks each, of which `per_node` are on one node, [n]."""

    size: Ints
    per_node: Ints

    @property
    def nodes(self) -> Ints:
        return self.size // self.per_node


def groups(size: Ints, stride: Ints, gpus_per_node: int) -> PeerGroups:
    """Return groups of ranks that are `stride` apart, ranks being counted node by node."""
    per_node = np.clip(gpus_per_node // np.maximum(stride, 1), 1, size)
    # As many on each node: sizes that do not divide have fewer neighbours.
    return PeerGroups(size=size, per_node=np.gcd(size, per_node))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Loads of a rank in two steps: messages and KiB inside nodes and between them, [n, 2, 4], and the groups, [n].
    rounds: of a ring, how often the first step is made one after the other, [n].

    kind: of `COLLECTIVES`, where it is one that can be measured as such, of `nbytes`, as commbench counts a size; [n].
    """

    loads: Floats
    of: PeerGroups
    rounds: Ints
    kind: Ints
    nbytes: Floats

    def __len__(self) -> int:
        return len(self.rounds)

    @property
    def nodes(self) -> Ints:
        return self.of.nodes


def _calls(
    of: PeerGroups, first: list[Floats], second: list[Floats] | None = None, rounds: Ints | None = None,
    kind: Ints | int = 0, nbytes: Floats | float = 0.0,
) -> Calls:  # fmt: skip
    n = len(of.size)
    loads = np.zeros((n, 2, 4))
    loads[:, 0] = np.stack([np.broadcast_to(one, n) for one in first], axis=1)
    if second is not None:
        loads[:, 1] = np.stack([np.broadcast_to(one, n) for one in second], axis=1)
    loads[:, :, (1, 3)] /= _KIB
    return Calls(
        loads=loads, of=of, rounds=np.ones(n, dtype=np.int64) if rounds is None else rounds,
        kind=np.array(np.broadcast_to(kind, n), dtype=np.int64),
        nbytes=np.array(np.broadcast_to(nbytes, n), dtype=float),
    )  # fmt: skip


def all_to_all(of: PeerGroups, nbytes: Floats) -> Calls:
    """Return one exchange; nbytes: that a rank has for all, itself included."""
    block = nbytes / of.size
    near, far = (of.per_node - 1).astype(float), (of.size - of.per_node).astype(float)
    return _calls(of, [near, near * block, far, far * block], kind=ALL_TO_ALL, nbytes=nbytes)


def two_hops(of: PeerGroups, nbytes: Floats) -> Calls:
    """Return the exchange as `2d_intra_first`: first within nodes, then between ranks of the same place."""
    near, far = (of.per_node - 1).astype(float), (of.nodes - 1).astype(float)
    none = np.zeros(len(of.size))
    return _calls(of, [near, near * nbytes / of.per_node, none, none], [none, none, far, far * nbytes / of.nodes])


def per_rank(of: PeerGroups, tokens: Floats, row_bytes: Floats, experts: int, top_k: int) -> Calls:
    """Return an exchange in which a token travels once to each rank that has an expert of it."""
    each = tokens * reached(experts, of.size, top_k) * row_bytes
    near, far = (of.per_node - 1).astype(float), (of.size - of.per_node).astype(float)
    return _calls(of, [near, near * each, far, far * each])


def per_node(of: PeerGroups, tokens: Floats, row_bytes: Floats, experts: int, top_k: int) -> Calls:
    """Return an exchange in which a token travels once to each node, to the rank of the same place, which forwards it
    to the ranks of its node that have experts of it."""
    far, near = (of.nodes - 1).astype(float), (of.per_node - 1).astype(float)
    node = tokens * reached(experts, of.nodes, top_k) * row_bytes
    rank = tokens * reached(experts, of.size, top_k) * row_bytes
    none = np.zeros(len(of.size))
    return _calls(of, [none, none, far, far * node], [near, near * rank * of.nodes, none, none])


def ring(of: PeerGroups, nbytes: Floats, times: Floats | float = 1.0) -> Calls:
    """Return an all_gather or a reduce_scatter in a ring; nbytes: of what all have together. times: 2 for an
    all_reduce. A ring crosses each node's links once, so of a node's ranks each has a part of that."""
    hops = (of.size - 1).astype(float)
    rounds = np.maximum(np.minimum(of.size - 1, _ROUNDS), 1)
    sent = times * hops * nbytes / of.size / rounds
    there = times * hops / rounds
    far = of.nodes > 1
    near = of.per_node > 1
    share = sent / of.per_node
    kind = np.where(np.asarray(times) == 2.0, ALL_REDUCE, ALL_GATHER)
    return _calls(
        of, [there * near, sent * near, there * far, np.where(far, share, 0.0)], rounds=rounds.astype(np.int64),
        kind=kind, nbytes=nbytes,
    )  # fmt: skip


def trees(of: PeerGroups, nbytes: Floats) -> Calls:
    """Return broadcasts of what each rank has of `nbytes`, to all others, in gloo's binomial trees, root after root.

    The last round of a tree sends between ranks that are half a group apart, so it crosses nodes with all of them.
    """
    crossings = np.array([_crossings(int(g), int(m)) for g, m in zip(of.size, of.per_node, strict=True)])
    inside, between = crossings[:, 0] / of.size, crossings[:, 1] / of.size
    far, near = (of.nodes > 1).astype(float), (of.per_node > 1).astype(float)
    rounds = np.maximum(np.ceil(np.log2(of.size)), 1).astype(np.int64)
    return _calls(of, [near, inside * nbytes / of.per_node, far, between * nbytes / of.per_node], rounds=rounds,
                  kind=BROADCASTS, nbytes=nbytes)  # fmt: skip


@functools.cache
def _crossings(size: int, per_node: int) -> tuple[float, float]:
    """Return how often a tree's bytes pass the busiest node's ranks and its link, by a round: means over all roots."""
    rounds = (size - 1).bit_length()
    inside = between = 0
    for root in range(size):
        for bit in range(rounds):
            near, far = Counter[int](), Counter[int]()
            for sender in range(1 << bit):
                if (receiver := sender + (1 << bit)) < size:
                    a, b = ((one + root) % size // per_node for one in (sender, receiver))
                    (near if a == b else far)[a] += 1
            inside += max(near.values(), default=0)
            between += max(far.values(), default=0)
    return inside / max(rounds, 1), between / max(rounds, 1)


def neighbours(of: PeerGroups, nbytes: Floats) -> Calls:
    """Return a message of `nbytes` to the next rank of the group."""
    far, some = of.per_node == 1, (of.size > 1).astype(float)
    return _calls(of, [some * ~far, np.where(far, 0.0, nbytes) * some, some * far, np.where(far, nbytes, 0.0) * some])


def reached(experts: int, parts: Ints, top_k: int) -> Floats:
    """Return the chance that a token has an expert in one of `parts` equal parts: 1 - C(E - E/g, K) / C(E, K)."""
    others = experts - experts / np.maximum(parts, 1)
    left = np.maximum(others - top_k, -0.5)
    chance = np.exp(gammaln(others + 1) - gammaln(left + 1) - gammaln(experts + 1) + gammaln(experts - top_k + 1))
    return np.asarray(np.where(others < top_k, 1.0, 1.0 - chance))


def joined(calls: list[Calls]) -> Calls:
    """Return calls of several kinds as one column after the other."""
    return Calls(
        loads=np.concatenate([one.loads for one in calls]),
        of=PeerGroups(size=np.concatenate([one.of.size for one in calls]),
                      per_node=np.concatenate([one.of.per_node for one in calls])),
        rounds=np.concatenate([one.rounds for one in calls]),
        kind=np.concatenate([one.kind for one in calls]),
        nbytes=np.concatenate([one.nbytes for one in calls]),
    )  # fmt: skip


def chosen(pick: npt.NDArray[np.bool_], yes: Calls, no: Calls) -> Calls:
    """Return of each place the call of `yes` where it is picked, else that of `no`."""
    return Calls(
        loads=np.where(pick[:, None, None], yes.loads, no.loads),
        of=PeerGroups(size=np.where(pick, yes.of.size, no.of.size),
                      per_node=np.where(pick, yes.of.per_node, no.of.per_node)),
        rounds=np.where(pick, yes.rounds, no.rounds),
        kind=np.where(pick, yes.kind, no.kind),
        nbytes=np.where(pick, yes.nbytes, no.nbytes),
    )  # fmt: skip


def scaled(calls: Calls, factor: Floats | float) -> Calls:
    """Return calls with so many times the bytes, and as many messages."""
    by = np.broadcast_to(np.asarray(factor, dtype=float), len(calls))
    loads = calls.loads.copy()
    loads[:, :, (1, 3)] *= by[:, None, None]
    return dataclasses.replace(calls, loads=loads, nbytes=calls.nbytes * by)


def taken(calls: Calls, places: npt.NDArray[np.bool_]) -> Calls:
    """Return the calls at the places that are marked."""
    return Calls(
        loads=calls.loads[places], of=PeerGroups(size=calls.of.size[places], per_node=calls.of.per_node[places]),
        rounds=calls.rounds[places], kind=calls.kind[places], nbytes=calls.nbytes[places],
    )  # fmt: skip
