"""all_reduce and reduce_scatter: elements of all ranks combined by `op`.

The inputs are small whole numbers, so that any order of combining them gives the same bits in every dtype, and the
check needs no tolerance.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from commbench.collectives.base import PART_BYTES, Argument, InPlace, Moves, round_down
from commbench.data import CHUNK_BYTES, OPS, POOL_STARTS, WORD_BYTES, Block, Bytes, block_key, encode, words
from commbench.layout import Layout
from commbench.links import Need, of_shared
from commbench.spec import DTYPES, Arguments, Spec

Integers = npt.NDArray[np.int64]

# The largest whole number up to which every one is exact. Products of uint8 and int32 wrap around, in any order.
_EXACT = {"fp32": 1 << 24, "fp16": 1 << 11, "bf16": 1 << 8, "int32": 1 << 31, "uint8": 1 << 8}
_WRAPS = ("int32", "uint8")
_TWOS = 15  # ranks that bring twos to a product of floating-point numbers; the others bring 1 and -1


class _Reduction(Moves):
    arguments = {"op": Argument("sum", "how elements are combined", tuple(OPS))}

    def reduces(self, arguments: Arguments) -> bool:
        return True

    def unsupported(self, spec: Spec) -> str:
        odd = super().unsupported(spec)
        return odd or unsupported_reduction(spec.ranks, spec.dtype, str(spec.arguments["op"]))

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        for part in range(spec.size_bytes // self.part_bytes(spec)):
            yield self._part(spec, part, seed=seed)

    def input_pool(self, spec: Spec, rank: int) -> Bytes | None:
        op = str(spec.arguments["op"])
        return pool(spec.dtype, op, rank=rank, ranks=spec.ranks, largest=self.part_bytes(spec))

    def expected_pool(self, spec: Spec, rank: int) -> Bytes | None:
        op = str(spec.arguments["op"])
        return combined_pool(spec.dtype, op, ranks=spec.ranks, largest=self.part_bytes(spec))

    def _part(self, spec: Spec, part: int, *, seed: int) -> Block:
        """Part `part` of the input of any rank, and of the result: elements of all ranks meet at the same place."""
        return Block(block_key(seed, part, part), self.part_bytes(spec))


class AllReduce(_Reduction):
    """`size_bytes` is the buffer of each rank."""

    name = "all_reduce"
    adjoint = "all_reduce"

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        # What is too small to be shared out is one part: nobody gets a share of it.
        few = size_bytes < layout.ranks * PART_BYTES
        return round_down(size_bytes, 1 if few else layout.ranks), arguments

    def part_bytes(self, spec: Spec) -> int:
        return spec.size_bytes if spec.size_bytes < spec.ranks * PART_BYTES else spec.block_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def in_place(self, spec: Spec, rank: int) -> InPlace | None:
        return InPlace(spec.size_bytes, 0, 0)

    def repeatable(self, spec: Spec) -> bool:
        return not spec.in_place or spec.arguments["op"] in ("min", "max")

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        return self.input_blocks(spec, rank, seed=seed)

    def needs(self, spec: Spec) -> list[Need]:
        # Everything but the own part must be combined elsewhere and come back: reduce_scatter, then all_gather.
        n, nodes = spec.ranks, spec.layout.nodes
        return of_shared(2 * spec.size_bytes * (n - 1) / n, 2 * spec.size_bytes * (nodes - 1) / nodes, spec.layout)

    def busbw_factor(self, spec: Spec) -> float | None:
        return 2 * (spec.ranks - 1) / spec.ranks


class ReduceScatter(_Reduction):
    """Rank r gets part r of what all_reduce gives. `size_bytes` is the input of each rank."""

    name = "reduce_scatter"
    adjoint = "all_gather"

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.block_bytes

    def in_place(self, spec: Spec, rank: int) -> InPlace | None:
        return InPlace(spec.size_bytes, rank * spec.block_bytes, 0)

    def repeatable(self, spec: Spec) -> bool:
        return not spec.in_place  # the parts of the others are lost

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield self._part(spec, rank, seed=seed)

    def needs(self, spec: Spec) -> list[Need]:
        n, nodes = spec.ranks, spec.layout.nodes
        return of_shared(spec.size_bytes * (n - 1) / n, spec.size_bytes * (nodes - 1) / nodes, spec.layout)

    def busbw_factor(self, spec: Spec) -> float | None:
        return (spec.ranks - 1) / spec.ranks


def unsupported_reduction(ranks: int, dtype: str, op: str) -> str:
    """Return in words why what `ranks` ranks bring cannot be combined without rounding; "" if it can."""
    if op == "sum" and dtype not in _WRAPS and ranks > _EXACT[dtype]:
        return f"sums over {ranks} ranks are not exact in {dtype}, so they cannot be checked"
    return ""


def pool(dtype: str, op: str, *, rank: int, ranks: int, largest: int) -> Bytes:
    """Return the numbers that `rank` of `ranks` brings, as many as pieces of blocks of `largest` bytes need."""
    return encode(_numbers(dtype, op, rank, ranks, _pool_elements(dtype, largest)), dtype)


def combined_pool(dtype: str, op: str, *, ranks: int, largest: int) -> Bytes:
    """Return what the pools of all ranks give together."""
    return _combined(dtype, op, ranks, _pool_elements(dtype, largest))


def _pool_elements(dtype: str, largest: int) -> int:
    """Return how many numbers will do for blocks of `largest` bytes, and for others of about that size."""
    return POOL_STARTS + (1 << (min(largest, CHUNK_BYTES) // DTYPES[dtype]).bit_length())


@functools.lru_cache(maxsize=4)
def _combined(dtype: str, op: str, ranks: int, count: int) -> Bytes:
    total = _numbers(dtype, op, 0, ranks, count)
    for rank in range(1, ranks):
        total = OPS[op](total, _numbers(dtype, op, rank, ranks, count))
    return encode(total, dtype)


def _numbers(dtype: str, op: str, rank: int, ranks: int, count: int) -> Integers:
    """Return whole numbers that any order of combining combines without rounding; other ones for each rank.

    They use the sign and, where products wrap around, all bits, so that a wrong type is seen.
    """
    stream = words(block_key(0, rank, ranks), -(-count * DTYPES[dtype] // WORD_BYTES))
    if dtype in _WRAPS:
        values = stream.view(np.int32 if dtype == "int32" else np.uint8)[:count].astype(np.int64)
        if op == "sum":  # never past the end: Open MPI's vector code saturates sums of bytes
            return values // ranks if dtype == "int32" else values % (max(1, 255 // ranks) + 1)
        return values | 1 if op == "prod" else values  # odd factors lose nothing: a product of even ones soon is 0
    drawn = stream.view(np.uint8)[:count].astype(np.int64)
    if op == "prod":
        # 1 or 2, and its sign; the product is a power of two, which fp16 has up to 2^15.
        return (1 + (drawn >> 1) % 2 * (rank < _TWOS)) * (1 - drawn % 2 * 2)
    if op == "sum":
        largest = max(1, min(127, _EXACT[dtype] // ranks))
        return drawn % (2 * largest + 1) - largest
    return drawn - 128
