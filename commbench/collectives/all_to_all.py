"""all_to_all: block d of rank s's input becomes block s of rank d's output; all blocks are equal."""

from __future__ import annotations

from collections.abc import Iterator

from commbench.data import Bytes, block_chunks, block_key
from commbench.spec import DTYPES, Send, Spec

# nccl-tests keeps each peer's part a multiple of 16 bytes.
BLOCK_UNIT = 16


class AllToAll:
    name = "all_to_all"
    adjoint = "all_to_all"
    dtypes = tuple(DTYPES)

    def round_size(self, size_bytes: int, ranks: int) -> int:
        unit = ranks * BLOCK_UNIT
        return size_bytes // unit * unit

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def input_chunks(self, spec: Spec, rank: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        for dst in range(spec.ranks):
            yield from block_chunks(block_key(seed, salt, rank, dst), spec.block_bytes)

    def expected_chunks(self, spec: Spec, rank: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        for src in range(spec.ranks):
            yield from block_chunks(block_key(seed, salt, src, rank), spec.block_bytes)

    def traffic(self, spec: Spec) -> list[Send]:
        ranks = range(spec.ranks)
        return [Send(src, dst, spec.block_bytes) for src in ranks for dst in ranks if src != dst]

    def busbw_factor(self, spec: Spec) -> float | None:
        return (spec.ranks - 1) / spec.ranks
