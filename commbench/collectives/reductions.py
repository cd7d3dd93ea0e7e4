"""all_reduce and reduce_scatter: elements of all ranks combined by `op`.

The inputs are small whole numbers, so that any order of combining them gives the same bits in every dtype, and the
check needs no tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from commbench.collectives.base import Argument, InPlace, Moves
from commbench.data import OPS, Bytes, block_chunks, block_key, encode
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
        return unsupported_reduction(spec.ranks, spec.dtype, str(spec.arguments["op"]))

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def input_chunks(self, spec: Spec, rank: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        for part in range(spec.ranks):
            for values in self._numbers(spec, rank, part, seed=seed, salt=salt):
                yield encode(values, spec.dtype)

    def _numbers(self, spec: Spec, rank: int, part: int, *, seed: int, salt: int) -> Iterator[Integers]:
        key, op = block_key(seed, salt, rank, part), str(spec.arguments["op"])
        return numbers(key, spec.block_bytes, spec.dtype, op, rank=rank, ranks=spec.ranks)

    def _combined(self, spec: Spec, part: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        """Part `part` of the result, in pieces."""
        streams = [self._numbers(spec, rank, part, seed=seed, salt=salt) for rank in range(spec.ranks)]
        yield from combined(streams, spec.dtype, str(spec.arguments["op"]))


class AllReduce(_Reduction):
    """`size_bytes` is the buffer of each rank."""

    name = "all_reduce"
    adjoint = "all_reduce"

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def in_place(self, spec: Spec, rank: int) -> InPlace | None:
        return InPlace(spec.size_bytes, 0, 0)

    def repeatable(self, spec: Spec) -> bool:
        return not spec.in_place or spec.arguments["op"] in ("min", "max")

    def expected_chunks(self, spec: Spec, rank: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        for part in range(spec.ranks):
            yield from self._combined(spec, part, seed=seed, salt=salt)

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

    def expected_chunks(self, spec: Spec, rank: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        yield from self._combined(spec, rank, seed=seed, salt=salt)

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


def combined(streams: Sequence[Iterator[Integers]], dtype: str, op: str) -> Iterator[Bytes]:
    """What the numbers of several ranks give together, in pieces."""
    for pieces in zip(*streams, strict=True):
        total = pieces[0]
        for piece in pieces[1:]:
            total = OPS[op](total, piece)
        yield encode(total, dtype)


def numbers(key: int, nbytes: int, dtype: str, op: str, *, rank: int, ranks: int) -> Iterator[Integers]:
    """The whole numbers that `rank` of `ranks` brings to `nbytes` of the result, in pieces.

    `key` makes them different for each rank, part and call. They use the sign and, where products wrap around, all
    bits, so that a wrong type is seen.
    """
    itemsize = DTYPES[dtype]
    for chunk in block_chunks(key, nbytes // itemsize * (itemsize if dtype in _WRAPS else 1)):
        if dtype in _WRAPS:
            values = chunk.view(np.int32 if dtype == "int32" else np.uint8).astype(np.int64)
            if op == "sum":  # never past the end: Open MPI's vector code saturates sums of bytes
                yield values // ranks if dtype == "int32" else values % (max(1, 255 // ranks) + 1)
            else:  # odd factors lose nothing: a product of even ones soon is 0
                yield values | 1 if op == "prod" else values
            continue
        drawn = chunk.astype(np.int64)
        if op == "prod":
            # 1 or 2, and its sign; the product is a power of two, which fp16 has up to 2^15.
            yield (1 + (drawn >> 1) % 2 * (rank < _TWOS)) * (1 - drawn % 2 * 2)
        elif op == "sum":
            largest = max(1, min(127, _EXACT[dtype] // ranks))
            yield drawn % (2 * largest + 1) - largest
        else:
            yield drawn - 128
