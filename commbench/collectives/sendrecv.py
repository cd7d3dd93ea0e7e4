"""sendrecv: each rank sends its buffer to the next rank and receives that of the one before, in a ring."""

from __future__ import annotations

from collections.abc import Iterator

from commbench.collectives.base import Blocks, round_down
from commbench.data import Block, block_key
from commbench.layout import Layout
from commbench.links import Need, of_messages
from commbench.spec import Arguments, Send, Spec


class SendRecv(Blocks):
    name = "sendrecv"
    adjoint = "sendrecv"

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        return round_down(size_bytes), arguments

    def part_bytes(self, spec: Spec) -> int:
        return spec.size_bytes

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield Block(block_key(seed, rank, 0), spec.size_bytes)

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield Block(block_key(seed, (rank - 1) % spec.ranks, 0), spec.size_bytes)

    def messages(self, spec: Spec) -> list[Send]:
        """One message from each rank to the next."""
        return [Send(src, (src + 1) % spec.ranks, spec.size_bytes) for src in range(spec.ranks)]

    def needs(self, spec: Spec) -> list[Need]:
        return of_messages(self.messages(spec), spec.layout)

    def busbw_factor(self, spec: Spec) -> float | None:
        return 1.0
