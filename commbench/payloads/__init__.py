"""Payloads: how rows of numbers become fewer bytes for the way, and numbers again. A new one is a line in `_ALL`.

A row of n values becomes one row of bytes on the wire: n codes, then a scale for each block of values, then zeros up to
a multiple of 16 bytes. `payloads.arrays` quantises numpy's arrays, `payloads.tensors` torch's: to the same bytes.

    payload   code    a scale is   of so many values   it is                                     half a step
    bf16      bf16    -                                                                          2^-8 of a value
    fp8       e4m3    fp32         128                 largest / 448, as in DeepEP               largest / 28
    mxfp8     e4m3    e8m0         32                  a power of 2, OCP MX, never too small     largest / 16
    int8      int8    fp32         128                 largest / 127                             largest / 254

`largest` is the largest magnitude of a block. A block that holds infinity or what is not a number arrives as nothing
but NaN; one whose largest is below 2^-100 is taken for one of that size. docs/reference/payloads.md has the proofs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from commbench.errors import unknown

ALIGNMENT = 16  # bytes, of a row on the wire
SCALE_ALIGNMENT = 4  # of its scales
SMALLEST = 2.0**-100  # what `largest` is taken for where it is below: all that is computed stays normal in fp32
NONE = "none"  # the word for no payload: elements travel as they are
E4M3_LARGEST, INT8_LARGEST = 448.0, 127.0
E8M0_NAN, FP32_NAN = 0xFF, 0x7FC00000  # the scale of a block with infinity, or what is not a number
# Half a step by the value, and the smallest normal number, of what values arrive as.
_ROUNDING = {"fp32": (2.0**-24, SMALLEST), "fp16": (2.0**-11, 2.0**-14), "bf16": (2.0**-8, SMALLEST)}
DTYPES = tuple(_ROUNDING)  # of the values
_COMPUTED = 2.0**-21  # relative error of four operations in fp32, and to spare

Code = Literal["bf16", "e4m3", "int8"]


class Tile(NamedTuple):
    """A part of a matrix of rows that is worked on at once: some rows, some of their values, and the scales of these.

    length: values of a block: each of the tile, or the one shorter block at the end of a row.
    """

    rows: slice
    values: slice
    length: int
    scales: slice  # bytes of the row on the wire


@dataclass(frozen=True, slots=True)
class Payload:
    """How values travel. block: values that share a scale. half_step: of its code, by the largest of a block."""

    name: str
    code: Code
    code_bytes: int
    block: int
    scale_bytes: int
    half_step: float

    def row_bytes(self, values: int) -> int:
        """Return the bytes on the wire of a row of so many values."""
        return -(-self._scales_end(values) // ALIGNMENT) * ALIGNMENT

    def scales_at(self, values: int) -> int:
        """Return where in a row on the wire the scales begin."""
        if not self.scale_bytes:
            return values * self.code_bytes
        return -(-values * self.code_bytes // SCALE_ALIGNMENT) * SCALE_ALIGNMENT

    def _scales_end(self, values: int) -> int:
        return self.scales_at(values) + (-(-values // self.block)) * self.scale_bytes

    def padding(self, values: int) -> list[slice]:
        """Return the bytes of a row on the wire that hold nothing: zeros."""
        gaps = (
            slice(values * self.code_bytes, self.scales_at(values)),
            slice(self._scales_end(values), self.row_bytes(values)),
        )
        return [gap for gap in gaps if gap.start < gap.stop]

    def unsupported(self, dtype: str) -> str:
        """Return in words why elements of this dtype cannot travel so; "" if they can."""
        if dtype not in DTYPES:
            return f"payload={self.name} is of {', '.join(DTYPES)}, and elements are {dtype}"
        if self.code == "bf16" and dtype == "fp16":
            return "payload=bf16 of fp16 saves no byte and loses three bits"
        return ""

    def changes(self, dtype: str) -> bool:
        """Return whether elements of this dtype travel as something else than they are."""
        return self.code != dtype

    def error(self, dtype: str) -> float:
        """Return the largest error of a value that arrives as `dtype`, by the largest magnitude of its block.

        That is at least `floor(dtype)` here.
        """
        if not self.changes(dtype):
            return 0.0
        rounding = _ROUNDING[dtype][0] if self.code != "bf16" else 0.0
        return self.half_step + rounding + (_COMPUTED if self.scale_bytes else 0.0)

    def floor(self, dtype: str) -> float:
        """Return what the largest magnitude of a block is taken for where it is below, in `error`."""
        return _ROUNDING[dtype][1]

    def tiles(self, rows: int, values: int, at_once: int) -> Iterator[Tile]:
        """Yield a matrix in parts of about `at_once` values, at the least a block each."""
        whole = values // self.block * self.block
        scales = self.scales_at(values)
        height = max(1, at_once // max(values, 1))
        width = max(1, at_once // self.block) * self.block
        for top in range(0, rows, height):
            band = slice(top, min(top + height, rows))
            for left in range(0, whole, width):
                right = min(left + width, whole)
                blocks = slice(left // self.block, right // self.block)
                yield Tile(band, slice(left, right), self.block, self._bytes(blocks, scales))
            if whole < values:
                last = slice(whole // self.block, whole // self.block + 1)
                yield Tile(band, slice(whole, values), values - whole, self._bytes(last, scales))

    def _bytes(self, blocks: slice, start: int) -> slice:
        return slice(start + blocks.start * self.scale_bytes, start + blocks.stop * self.scale_bytes)


_ALL = (
    Payload("bf16", "bf16", 2, 1, 0, 2.0**-8),
    Payload("fp8", "e4m3", 1, 128, 4, 1 / 28),
    Payload("mxfp8", "e4m3", 1, 32, 1, 1 / 16),
    Payload("int8", "int8", 1, 128, 4, 1 / 254),
)
TABLE: dict[str, Payload] = {payload.name: payload for payload in _ALL}
CHOICES = (NONE, *TABLE)


def get(name: str) -> Payload | None:
    """Return the payload of this name; None for `none`. Raises `UsageError`."""
    if name == NONE:
        return None
    if name not in TABLE:
        raise unknown("payload", name, CHOICES)
    return TABLE[name]
