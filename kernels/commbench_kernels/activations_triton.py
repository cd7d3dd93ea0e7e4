"""The kernels of `commbench_kernels.activations`, in Triton: imported when first used, as this needs triton."""

from __future__ import annotations

import triton
import triton.language as tl

_NONE, _RELU, _GELU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_ROOT_HALF = tl.constexpr(0.7071067811865476)
_DENSITY = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == _NONE:
        return x
    if ACTIVATION == _RELU:
        return tl.where(x <= 0, 0.0, x)  # nan stays nan
    if ACTIVATION == _GELU:
        return 0.5 * x * (1.0 + tl.erf(x * _ROOT_HALF))
    return x * _sigmoid(x)


@triton.jit
def _back(grad, x, ACTIVATION: tl.constexpr):
    """Return the gradient by the activation's input x; for relu x may be its output, which has the same sign."""
    if ACTIVATION == _NONE:
        return grad
    if ACTIVATION == _RELU:
        return tl.where(x <= 0, 0.0, grad)
    if ACTIVATION == _GELU:
        return grad * (0.5 * (1.0 + tl.erf(x * _ROOT_HALF)) + x * _DENSITY * tl.exp(-0.5 * x * x))
    share = _sigmoid(x)
    return grad * share * (1.0 + x * (1.0 - share))


@triton.jit
def _bounds(ends, each, SORTED: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr):
    """Return the first row of this program and the last + 1: of those up to its expert's end, or of `each` for one."""
    expert, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if SORTED:
        end = tl.load(ends + expert)
        begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    else:
        begin = expert * each
        end = begin + each
    of_part = tl.cdiv(tl.cdiv(end - begin, PARTS), ROWS) * ROWS
    first = begin + part * of_part
    return first, tl.minimum(first + of_part, end)


@triton.jit
def biased(
    out, rows, bias, ends, each, width, SORTED: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    first, last = _bounds(ends, each, SORTED, PARTS, ROWS)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    added = tl.load(bias + tl.program_id(0).to(tl.int64) * width + columns, mask=inside, other=0.0).to(WIDE)
    while first < last:
        row = first + tl.arange(0, ROWS)
        mask = (row < last)[:, None] & inside[None, :]
        at = row[:, None] * width + columns[None, :]
        value = tl.load(rows + at, mask=mask, other=0.0).to(WIDE) + added[None, :]
        if (ACTIVATION != _NONE) & (ACTIVATION != _RELU):
            tl.store(rows + at, value.to(rows.dtype.element_ty), mask=mask)
        tl.store(out + at, _activated(value, ACTIVATION).to(out.dtype.element_ty), mask=mask)
        first += ROWS


@triton.jit
def biased_backward(
    by_rows, partial, grad, kept, ends, each, width, SORTED: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    first, last = _bounds(ends, each, SORTED, PARTS, ROWS)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((ROWS, COLUMNS), WIDE)
    while first < last:
        row = first + tl.arange(0, ROWS)
        mask = (row < last)[:, None] & inside[None, :]
        at = row[:, None] * width + columns[None, :]
        given = tl.load(grad + at, mask=mask, other=0.0).to(WIDE)
        value = tl.load(kept + at, mask=mask, other=0.0).to(WIDE)
        found = _back(given, value, ACTIVATION)
        tl.store(by_rows + at, found.to(by_rows.dtype.element_ty), mask=mask)
        total += tl.where(mask, found, 0.0)
        first += ROWS
    place = tl.program_id(0).to(tl.int64) * PARTS + tl.program_id(1)
    tl.store(partial + place * width + columns, tl.sum(total, 0), mask=inside)


@triton.jit
def silu_mul(out, gate, up, many, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < many
    x = tl.load(gate + at, mask=mask, other=0.0).to(WIDE)
    y = tl.load(up + at, mask=mask, other=0.0).to(WIDE)
    tl.store(out + at, (x * _sigmoid(x) * y).to(out.dtype.element_ty), mask=mask)


@triton.jit
def silu_mul_backward(by_gate, by_up, grad, gate, up, many, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < many
    given = tl.load(grad + at, mask=mask, other=0.0).to(WIDE)
    x = tl.load(gate + at, mask=mask, other=0.0).to(WIDE)
    y = tl.load(up + at, mask=mask, other=0.0).to(WIDE)
    share = _sigmoid(x)
    found = given * y * share * (1.0 + x * (1.0 - share))
    tl.store(by_gate + at, found.to(by_gate.dtype.element_ty), mask=mask)
    tl.store(by_up + at, (given * x * share).to(by_up.dtype.element_ty), mask=mask)
