"""The kernels of `commbench_kernels.rows`, in Triton: imported when they are first used, as this needs triton.

One program for each token, or for each row that is written; each row is written by one program: nothing is atomic, sums
have a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_sum(
    out, source, index, weights, K: tl.constexpr, WEIGHTED: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # so that offsets of large buffers do not overflow
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        total = tl.zeros((BLOCK,), WIDE)
        for k in tl.static_range(K):
            at = tl.load(index + row * K + k)
            part = tl.load(source + at * WIDTH + columns, mask=inside & (at >= 0), other=0.0).to(WIDE)
            if WEIGHTED:
                part = part * tl.load(weights + row * K + k).to(WIDE)
            total += part
        tl.store(out + row * WIDTH + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def scatter(
    out, source, index, choice, K: tl.constexpr, TOKENS, HEIGHT, EMPTY: tl.constexpr, WIDTH: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    if program < TOKENS:
        for start in range(0, WIDTH, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < WIDTH
            value = tl.load(source + program * WIDTH + columns, mask=inside, other=0.0)
            for k in tl.static_range(K):
                at = tl.load(index + program * K + k)
                tl.store(out + at * WIDTH + columns, value, mask=inside & (at >= 0))
    else:
        _clear_empty(out, choice, (program - TOKENS) * EMPTY, HEIGHT, EMPTY, WIDTH, BLOCK)


@triton.jit
def combine_backward(
    grad_rows, grad_weights, rows, grad, index, choice, weights, K: tl.constexpr, TOKENS, HEIGHT, EMPTY: tl.constexpr,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    if program < TOKENS:
        whole = tl.arange(0, BLOCK)
        if WIDTH <= BLOCK:  # the gradient is read once, not once for each choice
            held = tl.load(grad + program * WIDTH + whole, mask=whole < WIDTH, other=0.0).to(WIDE)
        for k in tl.static_range(K):
            at = tl.load(index + program * K + k)
            weight = tl.load(weights + program * K + k).to(WIDE)
            products = tl.zeros((BLOCK,), WIDE)
            for start in range(0, WIDTH, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                written = (columns < WIDTH) & (at >= 0)
                if WIDTH <= BLOCK:
                    gradient = held
                else:
                    gradient = tl.load(grad + program * WIDTH + columns, mask=written, other=0.0).to(WIDE)
                value = tl.load(rows + at * WIDTH + columns, mask=written, other=0.0).to(WIDE)
                products += tl.where(written, gradient * value, 0.0)
                given = (gradient * weight).to(grad_rows.dtype.element_ty)
                tl.store(grad_rows + at * WIDTH + columns, given, mask=written)
            tl.store(grad_weights + program * K + k, tl.sum(products, 0))
    else:
        _clear_empty(grad_rows, choice, (program - TOKENS) * EMPTY, HEIGHT, EMPTY, WIDTH, BLOCK)


@triton.jit
def _clear_empty(out, choice, first, height, EMPTY: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Write zeros into those of the next EMPTY rows that no choice has."""
    numbers = first + tl.arange(0, EMPTY)
    empty = tl.load(choice + numbers, mask=numbers < height, other=0) < 0
    if tl.sum(empty.to(tl.int32), 0) > 0:
        for number in range(EMPTY):
            row = first + number
            if tl.load(choice + row, mask=row < height, other=0) < 0:
                for start in range(0, WIDTH, BLOCK):
                    columns = start + tl.arange(0, BLOCK)
                    zeros = tl.zeros((BLOCK,), out.dtype.element_ty)
                    tl.store(out + row * WIDTH + columns, zeros, mask=columns < WIDTH)


@triton.jit
def segment_sum(
    partial, rows, ends, PARTS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    segment, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    end = tl.load(ends + segment)
    begin = tl.load(ends + segment - 1, mask=segment > 0, other=0)
    each = tl.cdiv(tl.cdiv(end - begin, PARTS), ROWS) * ROWS
    first = begin + part * each
    last = tl.minimum(first + each, end)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    total = tl.zeros((ROWS, COLUMNS), WIDE)
    while first < last:
        row = first + tl.arange(0, ROWS)
        mask = (row < last)[:, None] & inside[None, :]
        total += tl.load(rows + row[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0).to(WIDE)
        first += ROWS
    tl.store(partial + (segment * PARTS + part) * WIDTH + columns, tl.sum(total, 0), mask=inside)
