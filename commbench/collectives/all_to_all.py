"""all_to_all: block d of rank s's input becomes block s of rank d's output; all blocks are equal."""

from __future__ import annotations

from collections.abc import Iterator

from commbench.collectives.base import Blocks
from commbench.data import Block, block_key
from commbench.links import Need
from commbench.spec import Send, Spec


class AllToAll(Blocks):
    name = "all_to_all"
    adjoint = "all_to_all"

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        for dst in range(spec.ranks):
            yield Block(block_key(seed, rank, dst), spec.block_bytes)

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        for src in range(spec.ranks):
            yield Block(block_key(seed, src, rank), spec.block_bytes)

    def messages(self, spec: Spec) -> list[Send]:
        """One message for each pair of ranks."""
        ranks = range(spec.ranks)
        return [Send(src, dst, spec.block_bytes) for src in ranks for dst in ranks if src != dst]

    def needs(self, spec: Spec) -> list[Need]:
        # What `of_messages` gives for the messages, without making all n (n - 1) of them.
        m, n, block = spec.layout.ranks_per_node, spec.ranks, spec.block_bytes
        needs = [Need(block * (m - 1), ("intra",), "rank"), Need(block * m * (m - 1), ("intra",), "node")] * (m > 1)
        needs += [Need(block * (n - m), ("inter",), "rank"), Need(block * m * (n - m), ("inter",), "node")] * (n > m)
        return needs

    def busbw_factor(self, spec: Spec) -> float | None:
        return (spec.ranks - 1) / spec.ranks
