"""all_reduce and reduce_scatter: elements of all ranks combined by `op`.

The inputs are small whole numbers, so that any order of combining them gives the same bits in every dtype, and the
check needs no tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from commbench.bound import Need, of_shared
from commbench.collectives.base import Argument, InPlace, Moves
from commbench.data import OPS, Bytes, block_chunks, block_key, encode
from commbench.spec import Spec

# The largest whole number up to which every one is exact. Products of uint8 and int32 wrap around, in any order.
_EXACT = {"fp32": 1 << 24, "fp16": 1 << 11, "bf16": 1 << 8, "int32": 1 << 31, "uint8": 1 << 8}
_WRAPS = ("int32", "uint8")
_TWOS = 15  # ranks that bring twos to a product of floating-point numbers; the others bring 1 and -1


class _Reduction(Moves):
    reduces = True
    arguments = {"op": Argument("sum", "how elements are combined", tuple(OPS))}

    def refuses(self, spec: Spec) -> str | None:
        if spec.arguments["op"] == "sum" and spec.dtype not in _WRAPS and spec.ranks > _EXACT[spec.dtype]:
            return f"sums over {spec.ranks} ranks are not exact in {spec.dtype}, so they cannot be checked"
        return None

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def input_chunks(self, spec: Spec, rank: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        for part in range(spec.ranks):
            for values in _numbers(spec, rank, part, seed=seed, salt=salt):
                yield encode(values, spec.dtype)

    def _combined(self, spec: Spec, part: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        """Part `part` of the result, in pieces."""
        op = OPS[str(spec.arguments["op"])]
        streams = [_numbers(spec, rank, part, seed=seed, salt=salt) for rank in range(spec.ranks)]
        for pieces in zip(*streams, strict=True):
            total = pieces[0]
            for piece in pieces[1:]:
                total = op(total, piece)
            yield encode(total, spec.dtype)


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


def _numbers(spec: Spec, rank: int, part: int, *, seed: int, salt: int) -> Iterator[npt.NDArray[np.int64]]:
    """The whole numbers that `rank` brings to part `part`, in pieces: different for each rank, part and call.

    They use the sign and, where products wrap around, all bits, so that a wrong type is seen.
    """
    op, dtype = spec.arguments["op"], spec.dtype
    itemsize = spec.itemsize if dtype in _WRAPS else 1
    for chunk in block_chunks(block_key(seed, salt, rank, part), spec.block_bytes // spec.itemsize * itemsize):
        if dtype in _WRAPS:
            values = chunk.view(np.int32 if dtype == "int32" else np.uint8).astype(np.int64)
            if op == "sum":  # never past the end: Open MPI's vector code saturates sums of bytes
                yield values // spec.ranks if dtype == "int32" else values % (max(1, 255 // spec.ranks) + 1)
            else:  # odd factors lose nothing: a product of even ones soon is 0
                yield values | 1 if op == "prod" else values
            continue
        drawn = chunk.astype(np.int64)
        if op == "prod":
            # 1 or 2, and its sign; the product is a power of two, which fp16 has up to 2^15.
            yield (1 + (drawn >> 1) % 2 * (rank < _TWOS)) * (1 - drawn % 2 * 2)
        elif op == "sum":
            largest = max(1, min(127, _EXACT[dtype] // spec.ranks))
            yield drawn % (2 * largest + 1) - largest
        else:
            yield drawn - 128
