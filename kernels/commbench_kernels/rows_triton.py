"""The kernels of `commbench_kernels.rows`, in Triton: imported when they are first used, as this needs triton.

One program for each row that is written, which no other program writes: nothing is atomic, sums have a fixed order.
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
def combine_backward(
    grad_rows, grad_weights, rows, grad, choice, weights, K: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.load(choice + row)
    taken = at >= 0
    token = tl.where(taken, at, 0) // K
    weight = tl.load(weights + at, mask=taken, other=0.0).to(WIDE)
    products = tl.zeros((BLOCK,), WIDE)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        to_read = inside & taken
        gradient = tl.load(grad + token * WIDTH + columns, mask=to_read, other=0.0).to(WIDE)
        value = tl.load(rows + row * WIDTH + columns, mask=to_read, other=0.0).to(WIDE)
        products += gradient * value
        tl.store(grad_rows + row * WIDTH + columns, (gradient * weight).to(grad_rows.dtype.element_ty), mask=inside)
    tl.store(grad_weights + at, tl.sum(products, 0), mask=taken)
