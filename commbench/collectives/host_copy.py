"""host_copy: what a rank's device and its host's memory have to exchange where layers are swapped, or activations kept.

No rank talks to another: each copies `size_bytes` by itself, all of them at the same time, as they share what leads to
the host's memory. `way=h2d` to the device, `d2h` from it, `both` from the device to the host and back, part by part, so
that both directions are at work.
"""

from __future__ import annotations

from collections.abc import Iterator

from commbench.collectives.base import Argument, Blocks, round_down
from commbench.data import Block, block_key
from commbench.layout import Layout
from commbench.links import Need
from commbench.spec import Arguments, Spec

WAYS, MEMORIES = ("h2d", "d2h", "both"), ("pinned", "pageable")


class HostCopy(Blocks):
    name = "host_copy"
    adjoint = "host_copy"
    alone = True
    arguments = {
        "way": Argument("h2d", "h2d: to the device; d2h: from it; both: to the host and back, in parts", WAYS),
        "host_memory": Argument("pinned", "pinned: the device reaches it by itself; pageable: as programs get it",
                                MEMORIES),
    }  # fmt: skip

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        return round_down(size_bytes), arguments

    def part_bytes(self, spec: Spec) -> int:
        return spec.size_bytes

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def host_memory(self, spec: Spec) -> tuple[str, str]:
        kind, way = str(spec.arguments["host_memory"]), spec.arguments["way"]
        return kind if way == "d2h" else "", kind if way == "h2d" else ""

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield Block(block_key(seed, rank, rank), spec.size_bytes)

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield from self.input_blocks(spec, rank, seed=seed)

    def needs(self, spec: Spec) -> list[Need]:
        """Return what each direction carries; where both are at work each has the whole rate."""
        return [Need(spec.size_bytes, ("host",))]

    def busbw_factor(self, spec: Spec) -> float | None:
        return 1.0
