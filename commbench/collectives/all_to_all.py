"""all_to_all: block d of rank s's input becomes block s of rank d's output; all blocks are equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from commbench.collectives.base import round_down
from commbench.collectives.payload import PAYLOAD, PayloadBlocks, kept
from commbench.data import Block, block_key
from commbench.layout import Layout
from commbench.links import Need
from commbench.spec import Arguments, Send, Spec


class AllToAll(PayloadBlocks):
    name = "all_to_all"
    adjoint = "all_to_all"
    arguments = {"payload": PAYLOAD}

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        return round_down(size_bytes, layout.ranks), kept(arguments)

    def wire_spec(self, spec: Spec) -> Spec:
        return replace(spec, size_bytes=spec.ranks * self.wire_bytes(spec, spec.block_bytes), arguments={})

    def sent(self, spec: Spec, rank: int) -> list[int]:
        return [spec.block_bytes] * spec.ranks

    def received(self, spec: Spec, rank: int) -> list[int]:
        return [spec.block_bytes] * spec.ranks

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
        m, n, block = spec.layout.ranks_per_node, spec.ranks, self.wire_bytes(spec, spec.block_bytes)
        needs = [Need(block * (m - 1), ("intra",), "rank"), Need(block * m * (m - 1), ("intra",), "node")] * (m > 1)
        needs += [Need(block * (n - m), ("inter",), "rank"), Need(block * m * (n - m), ("inter",), "node")] * (n > m)
        return needs

    def busbw_factor(self, spec: Spec) -> float | None:
        return (spec.ranks - 1) / spec.ranks
