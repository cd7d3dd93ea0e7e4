"""all_gather: every rank's part, in rank order, on every rank. `size_bytes` is the whole output."""

from __future__ import annotations

from collections.abc import Iterator

from commbench.collectives.base import Blocks, InPlace
from commbench.data import Block, block_key
from commbench.links import Need, of_shared
from commbench.spec import Spec


class AllGather(Blocks):
    name = "all_gather"
    adjoint = "reduce_scatter"

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.block_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def in_place(self, spec: Spec, rank: int) -> InPlace | None:
        return InPlace(spec.size_bytes, 0, rank * spec.block_bytes)

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield Block(block_key(seed, rank, 0), spec.block_bytes)

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        for src in range(spec.ranks):
            yield Block(block_key(seed, src, 0), spec.block_bytes)

    def needs(self, spec: Spec) -> list[Need]:
        n, nodes = spec.ranks, spec.layout.nodes
        return of_shared(spec.size_bytes * (n - 1) / n, spec.size_bytes * (nodes - 1) / nodes, spec.layout)

    def busbw_factor(self, spec: Spec) -> float | None:
        return (spec.ranks - 1) / spec.ranks
