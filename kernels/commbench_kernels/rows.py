"""Rows by index, one pass each: what a Mixture-of-Experts layer does before and after its experts.

scatter           each row of the input goes to each of its places in the output
gather_sum        each row of the output is a sum of rows of the input, with weights or without
combine_backward  the gradients of such a weighted sum, by the rows and by the weights
segment_sum       sums of consecutive rows: the gradient of a bias that each expert's rows share

Each reads every row that it needs once and writes every row of its output once, where plain torch needs a pass for each
gather, mask, product and sum. Products and sums are in fp32, or in fp64 where something given is fp64. Beside each
stands its reference in plain torch. Roofline: the bytes that are read and written, at the memory's bandwidth
(`least_us`).

Needs a GPU and triton, which torch's CUDA builds for Linux bring. With TRITON_INTERPRET=1 triton runs on a CPU, slowly.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
from torch import Tensor

_MOST = 4096  # elements of a row that a program of `gather_sum` holds at a time
_MOST_OF_TOKEN = 8192  # and one of the others, which reads what several rows share once
_PER_WARP = 512  # of them
_PROGRAMS = 1024  # of `segment_sum`, about, for each block of columns: enough for every multiprocessor
_COLUMNS, _ROWS = 128, 32  # of a tile of `segment_sum`
_EMPTY = 32  # rows that a program looks through for those that nobody writes


def unsupported(device: torch.device) -> str:
    """Return in words what the kernels lack there; "" if nothing."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"a GPU, and tensors are on {device.type}"
    return _missing_triton()


@functools.cache
def _missing_triton() -> str:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton, which cannot be imported: {error}"
    return ""


def gather_sum(source: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum weights[m, k] x source[index[m, k]] over k into row m of the output: [M, D], in source's dtype.

    source: [N, D]. index: int64 [M, K] in -1 .. N - 1; -1 adds nothing. weights: [M, K], finite; None for ones.
    """
    out = source.new_empty(len(index), source.shape[1])
    if out.numel():
        launch = _launch("gather_sum", source, weights, _MOST)
        source, index = source.contiguous(), index.contiguous()
        given = source if weights is None else weights.contiguous()  # a pointer that is not read, for null
        launch(len(out), out, source, index, given, K=index.shape[1], WEIGHTED=weights is not None)
    return out


def gather_sum_reference(source: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute `gather_sum` in plain torch, with all rows in memory at once."""
    wide = _wide(source, weights)
    padded = torch.cat([source, source.new_zeros(1, source.shape[1])])  # where -1 points to
    rows = padded[index].to(wide)
    return (rows if weights is None else rows * weights.to(wide)[:, :, None]).sum(1).to(source.dtype)


def scatter(source: Tensor, index: Tensor, choice: Tensor) -> Tensor:
    """Put row t of the source into row index[t, k] of the output, for each k: [R, D], in source's dtype.

    source: [T, D]. index: int64 [T, K], each row from 0 on at most once; -1 goes nowhere. choice: int64 [R], the
    inverse of index: choice[index[t, k]] = t K + k, and -1 for a row that nobody writes, which becomes 0.
    """
    out = source.new_empty(len(choice), source.shape[1])
    if out.numel():
        launch = _launch("scatter", source, None, _MOST_OF_TOKEN, with_empty=len(choice))
        launch(len(source), out, source.contiguous(), index.contiguous(), choice.contiguous(), K=index.shape[1])
    return out


def scatter_reference(source: Tensor, index: Tensor, choice: Tensor) -> Tensor:
    """Compute `scatter` in plain torch."""
    out = source.new_zeros(len(choice), source.shape[1])
    token, _ = (index >= 0).nonzero(as_tuple=True)  # waits for the device
    out[index[index >= 0]] = source[token]
    return out


def combine_backward(
    rows: Tensor, grad: Tensor, index: Tensor, choice: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gradients by rows and weights of y[t] = sum over k of weights[t, k] x rows[index[t, k]].

    rows: [R, D]. grad: of y, [T, D], in rows' dtype. index, choice: as in `scatter`; a row that nobody reads has the
    gradient 0. weights: [T, K]; one without a row has the gradient 0.
    """
    grad_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
    grad_weights = torch.empty(weights.shape, dtype=_wide(rows, weights), device=rows.device)
    if not rows.numel():
        return grad_rows, grad_weights.zero_().to(weights.dtype)
    launch = _launch("combine_backward", rows, weights, _MOST_OF_TOKEN, with_empty=len(rows))
    launch(len(grad), grad_rows, grad_weights, rows.contiguous(), grad.contiguous(), index.contiguous(),
           choice.contiguous(), weights.contiguous(), K=weights.shape[1])  # fmt: skip
    return grad_rows, grad_weights.to(weights.dtype)


def combine_backward_reference(
    rows: Tensor, grad: Tensor, index: Tensor, choice: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `combine_backward` in plain torch."""
    wide = _wide(rows, weights)
    taken = index >= 0
    token, _ = taken.nonzero(as_tuple=True)  # waits for the device
    gradients = grad[token].to(wide)
    grad_rows, grad_weights = torch.zeros_like(rows), torch.zeros(weights.shape, dtype=wide, device=rows.device)
    grad_rows[index[taken]] = (gradients * weights[taken][:, None].to(wide)).to(rows.dtype)
    grad_weights[taken] = (gradients * rows[index[taken]].to(wide)).sum(1)
    return grad_rows, grad_weights.to(weights.dtype)


def segment_sum(rows: Tensor, counts: Tensor) -> Tensor:
    """Sum the first counts[0] rows, then the next counts[1], and so on: [E, D], in fp32, or fp64 for fp64 rows.

    rows: [N, D]. counts: int64 [E], their sum at most N. An empty segment gives 0. What is not finite stays in its
    segment, which a product by a one-hot matrix would spread.
    """
    segments, width = len(counts), rows.shape[1]
    out = torch.zeros(segments, width, dtype=_wide(rows, None), device=rows.device)
    if not rows.numel() or not segments:
        return out
    parts = max(1, min(64, _PROGRAMS // segments, len(rows) // _ROWS))
    partial = out.new_empty(segments, parts, width)
    ends = counts.cumsum(0)
    launch = _launch("segment_sum", rows, None, _MOST)
    launch((segments, parts, -(-width // _COLUMNS)), partial, rows.contiguous(), ends, PARTS=parts, COLUMNS=_COLUMNS,
           ROWS=_ROWS)  # fmt: skip
    return partial.sum(1)


def segment_sum_reference(rows: Tensor, counts: Tensor) -> Tensor:
    """Compute `segment_sum` in plain torch."""
    wide = _wide(rows, None)
    segment = torch.arange(len(counts), device=rows.device).repeat_interleave(counts)  # waits for the device
    out = torch.zeros(len(counts), rows.shape[1], dtype=wide, device=rows.device)
    return out.index_add_(0, segment, rows[: len(segment)].to(wide))


def least_us(read: int, written: int, width: int, element: int, memory_gbps: float) -> float:
    """Return the roofline: microseconds for so many rows of `width` elements of `element` bytes, at `memory_gbps` GB/s.

    gather_sum: reads each choice's row (or, where the cache holds them, each row once), writes M. combine_backward:
    reads R of the rows and of the gradient, writes R.
    """
    return (read + written) * width * element / memory_gbps / 1e3


def _wide(values: Tensor, weights: Tensor | None) -> torch.dtype:
    dtypes = (values.dtype, values.dtype if weights is None else weights.dtype)
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _launch(name: str, rows: Tensor, weights: Tensor | None, most: int, *, with_empty: int | None = None) -> Any:
    """Return the kernel for rows of this width on their device, which holds up to `most` elements of one at a time.

    It is called with the number of programs, or their grid, then its tensors. with_empty: how many rows of the output
    programs behind the others look through for those that nobody writes.
    """
    import triton.language as tl

    from commbench_kernels import rows_triton

    kernel: Any = getattr(rows_triton, name)
    width = rows.shape[1]
    block = min(most, 1 << (width - 1).bit_length())
    wide = tl.float64 if _wide(rows, weights) == torch.float64 else tl.float32
    warps = max(1, block // _PER_WARP)

    def launch(programs: int | tuple[int, ...], *tensors: Tensor, **constants: int) -> None:
        grid = (programs,) if isinstance(programs, int) else programs
        if with_empty is not None:
            constants |= {"TOKENS": grid[0], "EMPTY": _EMPTY, "HEIGHT": with_empty}
            grid = (grid[0] + -(-with_empty // _EMPTY),)
        with torch.cuda.device_of(tensors[0]):
            kernel[grid](*tensors, **constants, WIDTH=width, WIDE=wide, BLOCK=block, num_warps=warps)

    return launch
