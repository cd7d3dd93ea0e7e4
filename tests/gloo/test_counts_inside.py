"""Uneven exchanges whose messages carry the counts: right for any counts, in as many messages as without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from commbench import algorithms
from commbench.communicators.select import size_of
from commbench.layout import Layout
from commbench.spec import Spec
from commbench.transports.gloo import GlooComm
from tests.support import profiles
from tests.support.ranks import on_gloo

WAYS: list[tuple[str, dict[str, int], Layout]] = [
    ("pairwise", {"window": 1}, Layout(1, 6)),
    ("pairwise", {"window": 4}, Layout(6, 1)),
    *((name, {}, layout) for name in ("2d_intra_first", "2d_inter_first") for layout in (Layout(2, 3), Layout(3, 2))),
]
LARGE, BEYOND = 12_000, 100_000  # bytes of a block: both more than there is room for at first


def matrices(n: int) -> list[Any]:
    """What ranks send to each other, call after call: bytes from rank i to rank j in row i."""
    draw = np.random.default_rng(n)
    some = [draw.integers(0, 300, (n, n)) * draw.integers(0, 2, (n, n)) for _ in range(4)]
    lonely = np.zeros((n, n), dtype=int)
    lonely[1, n - 1] = LARGE
    even = np.full((n, n), LARGE)
    return [
        *some,
        np.zeros((n, n), dtype=int),
        lonely,
        even,
        even,
        even * 3 // 2,
        lonely.T,
        np.full((n, n), BEYOND),
        some[0],
    ]


def block(src: int, dst: int, nbytes: int, call: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([src, dst, call]).integers(0, 256, nbytes, dtype=np.uint8))


def test_any_counts_arrive_and_all_ranks_learn_the_size() -> None:
    def rank(transport: Any) -> list[list[int]]:
        me, n = transport.rank, transport.size
        found = []
        for name, params, layout in WAYS:
            made = algorithms.get("all_to_allv", name).counts_inside
            assert made is not None
            chosen = profiles.config("all_to_allv", name, **params)
            way = made(transport.world, Spec(
                collective="all_to_allv", dtype="uint8", size_bytes=0, layout=layout, params=chosen.params,
            ))  # fmt: skip
            posted = []
            for call, matrix in enumerate(matrices(n)):
                sent, received = matrix[me].tolist(), matrix[:, me].tolist()
                inp = torch.cat([block(me, dst, sent[dst], call) for dst in range(n)])
                out = torch.full((sum(received),), 255, dtype=torch.uint8)
                before = Counting.sent
                assert way.run(out, inp, received, sent) == size_of(matrix.tolist()), (name, layout, call)
                posted.append(Counting.sent - before)
                assert torch.equal(out, torch.cat([block(src, me, received[src], call) for src in range(n)]))
            found.append(posted)
        return found

    GlooComm.exchange = Counting.exchange  # type: ignore[method-assign]
    try:
        counted = on_gloo(6, rank)
    finally:
        GlooComm.exchange = Counting.original  # type: ignore[method-assign]
    for (name, _, layout), messages in zip(WAYS, counted, strict=True):
        least = 5 if name == "pairwise" else layout.nodes - 1 + layout.ranks_per_node - 1
        first = 0 if name == "pairwise" else (layout.nodes if name == "2d_inter_first" else layout.ranks_per_node) - 1
        # Of a call that is larger than there is room for, each message of the first leg is two.
        beyond = [0, 0, 0, 0, 0, 0, first, 0, 0, 0, first, 0]
        assert messages == [least + more for more in beyond], (name, layout)


class Counting:
    """The messages that this rank has sent."""

    sent = 0
    original = GlooComm.exchange

    def exchange(self: Any, sends: Any, recvs: Any, *, step: str) -> Any:
        assert all(len(array) for _, array in (*sends, *recvs)), "no message may be empty"
        Counting.sent += len(sends)
        return Counting.original(self, sends, recvs, step=step)
