"""broadcast: the root's buffer on every rank. `size_bytes` is that buffer."""

from __future__ import annotations

from collections.abc import Iterator

from commbench.collectives.base import Argument, Blocks, InPlace, round_down
from commbench.data import Block, block_key
from commbench.layout import Layout
from commbench.links import Need, of_shared
from commbench.spec import Arguments, Spec


class Broadcast(Blocks):
    name = "broadcast"
    adjoint = "reduce"
    arguments = {"root": Argument(0, "the rank whose buffer is sent (in each group)", limits=(int, 0, 1 << 30))}

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        root = arguments["root"]
        if not isinstance(root, int) or not 0 <= root < layout.ranks:
            raise ValueError(f"root={root}: the ranks are 0 .. {layout.ranks - 1}")
        return round_down(size_bytes), arguments

    def part_bytes(self, spec: Spec) -> int:
        return spec.size_bytes

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes if rank == spec.arguments["root"] else 0

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def in_place(self, spec: Spec, rank: int) -> InPlace | None:
        return InPlace(spec.size_bytes, 0, 0)

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield Block(block_key(seed, rank, 0), self.input_bytes(spec, rank))

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield Block(block_key(seed, int(spec.arguments["root"]), 0), spec.size_bytes)

    def needs(self, spec: Spec) -> list[Need]:
        return of_shared(spec.size_bytes, spec.size_bytes, spec.layout)

    def busbw_factor(self, spec: Spec) -> float | None:
        return 1.0
