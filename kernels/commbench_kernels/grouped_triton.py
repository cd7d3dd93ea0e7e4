"""The kernels of `commbench_kernels.grouped`, in Triton: imported when they are first used, as this needs triton."""

from __future__ import annotations

import triton
import triton.language as tl

_BAND = tl.constexpr(8)  # tiles of rows that are done together, so that weights are read from the cache


@triton.jit
def place_tiles(place, ends, experts, tiles, ROWS: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr):
    """Write each tile's expert, -1 for none, and its first row."""
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    expert = tl.arange(0, WIDE)
    end = tl.load(ends + expert, mask=expert < experts, other=0)
    begin = tl.load(ends + expert - 1, mask=(expert > 0) & (expert < experts), other=0)
    tiles_of = tl.where(expert < experts, (end - begin + ROWS - 1) // ROWS, 0)
    up_to = tl.cumsum(tiles_of, 0)
    found = tl.sum((up_to[None, :] <= tile[:, None]).to(tl.int64), 1)
    here = expert[None, :] == found[:, None]
    first = tl.sum(tl.where(here, (begin - (up_to - tiles_of) * ROWS)[None, :], 0), 1) + tile * ROWS
    is_tile = tile < tiles
    tl.store(place + tile * 2, tl.where(found < experts, found, -1), mask=is_tile)
    tl.store(place + tile * 2 + 1, first, mask=is_tile)


@triton.jit
def grouped_mm(
    out, rows, weight, place, ends, inner, width, stride_e, stride_i, stride_o, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(width, COLUMNS)
    tiles = tl.num_programs(0) // across
    # Bands of tiles of rows, column by column.
    program = tl.program_id(0)
    band = program // (_BAND * across)
    height = tl.minimum(tiles - band * _BAND, _BAND)
    tile = band * _BAND + (program % (_BAND * across)) % height
    expert = tl.load(place + tile * 2)
    if expert >= 0:
        row = tl.load(place + tile * 2 + 1) + tl.arange(0, ROWS)
        is_row = row < tl.load(ends + expert)
        column = (program % (_BAND * across)) // height * COLUMNS + tl.arange(0, COLUMNS)
        is_column = column < width
        k = tl.arange(0, INNER)
        left = rows + row[:, None] * inner + k[None, :]
        right = weight + expert * stride_e + k[:, None] * stride_i + column[None, :].to(tl.int64) * stride_o
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, inner, INNER):
            is_inner = start + k < inner
            x = tl.load(left, mask=is_row[:, None] & is_inner[None, :], other=0.0)
            w = tl.load(right, mask=is_inner[:, None] & is_column[None, :], other=0.0)
            total = tl.dot(x, w, total, input_precision="ieee" if EXACT else "tf32")
            left += INNER
            right += INNER * stride_i
        at = out + row[:, None] * width + column[None, :]
        tl.store(at, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit
def grouped_mm_by_weight(
    out, rows, grad, ends, inner, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(1).to(tl.int64)
    end = tl.load(ends + expert)
    first = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    down = tl.cdiv(inner, ROWS)
    i = tl.program_id(0) % down * ROWS + tl.arange(0, ROWS)
    o = tl.program_id(0) // down * COLUMNS + tl.arange(0, COLUMNS)
    n = tl.arange(0, INNER)
    left = rows + (first + n)[None, :] * inner + i[:, None]
    right = grad + (first + n)[:, None] * width + o[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, (end - first).to(tl.int32), INNER):
        is_row = first + start + n < end
        x = tl.load(left, mask=(i < inner)[:, None] & is_row[None, :], other=0.0)
        y = tl.load(right, mask=is_row[:, None] & (o < width)[None, :], other=0.0)
        total = tl.dot(x, y, total, input_precision="ieee" if EXACT else "tf32")
        left += INNER * inner
        right += INNER * width
    at = out + expert * inner * width + i[:, None].to(tl.int64) * width + o[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(i < inner)[:, None] & (o < width)[None, :])
