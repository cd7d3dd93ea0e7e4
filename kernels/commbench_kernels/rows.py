"""Rows by index, one pass each: what a Mixture-of-Experts layer does before and after its experts.

gather_sum        each row of the output is a sum of rows of the input, with weights or without
combine_backward  the gradients of such a weighted sum, by the rows and by the weights

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

_MOST = 4096  # elements of a row that a program holds at a time
_PER_WARP = 512  # of them


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
        launch = _launch("gather_sum", source, weights)
        source, index = source.contiguous(), index.contiguous()
        given = source if weights is None else weights.contiguous()  # a pointer that is not read, for null
        launch(out, source, index, given, K=index.shape[1], WEIGHTED=weights is not None)
    return out


def gather_sum_reference(source: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute `gather_sum` in plain torch, with all rows in memory at once."""
    wide = _wide(source, weights)
    padded = torch.cat([source, source.new_zeros(1, source.shape[1])])  # where -1 points to
    rows = padded[index].to(wide)
    return (rows if weights is None else rows * weights.to(wide)[:, :, None]).sum(1).to(source.dtype)


def combine_backward(rows: Tensor, grad: Tensor, choice: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients by rows and weights of y[t] = sum over k of weights[t, k] x rows[r], choice[r] = t K + k.

    rows: [R, D]. grad: of y, [T, D], in rows' dtype. choice: int64 [R], each from 0 on at most once; -1 for a row that
    nobody reads, whose gradient is 0. weights: [T, K]; one without a row has the gradient 0.
    """
    grad_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
    grad_weights = torch.zeros(weights.shape, dtype=_wide(rows, weights), device=rows.device)
    if grad_rows.numel():
        launch = _launch("combine_backward", rows, weights)
        launch(grad_rows, grad_weights, rows.contiguous(), grad.contiguous(), choice.contiguous(),
               weights.contiguous(), K=weights.shape[1])  # fmt: skip
    return grad_rows, grad_weights.to(weights.dtype)


def combine_backward_reference(rows: Tensor, grad: Tensor, choice: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `combine_backward` in plain torch."""
    wide = _wide(rows, weights)
    (taken,) = (choice >= 0).nonzero(as_tuple=True)  # waits for the device
    at = choice[taken]
    gradients = grad[at // weights.shape[1]].to(wide)
    grad_rows, grad_weights = torch.zeros_like(rows), torch.zeros(weights.numel(), dtype=wide, device=rows.device)
    grad_rows[taken] = (gradients * weights.flatten()[at, None].to(wide)).to(rows.dtype)
    grad_weights[at] = (gradients * rows[taken].to(wide)).sum(1)
    return grad_rows, grad_weights.view(weights.shape).to(weights.dtype)


def least_us(read: int, written: int, width: int, element: int, memory_gbps: float) -> float:
    """Return the roofline: microseconds for so many rows of `width` elements of `element` bytes, at `memory_gbps` GB/s.

    gather_sum: reads each choice's row (or, where the cache holds them, each row once), writes M. combine_backward:
    reads R of the rows and of the gradient, writes R.
    """
    return (read + written) * width * element / memory_gbps / 1e3


def _wide(values: Tensor, weights: Tensor | None) -> torch.dtype:
    dtypes = (values.dtype, values.dtype if weights is None else weights.dtype)
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _launch(name: str, rows: Tensor, weights: Tensor | None) -> Any:
    """Return the kernel for rows of this width on their device. Its first tensor is the output."""
    import triton.language as tl

    from commbench_kernels import rows_triton

    kernel: Any = getattr(rows_triton, name)
    width = rows.shape[1]
    block = min(_MOST, 1 << (width - 1).bit_length())
    wide = tl.float64 if _wide(rows, weights) == torch.float64 else tl.float32
    warps = max(1, block // _PER_WARP)

    def launch(out: Tensor, *tensors: Tensor, **constants: int) -> None:
        with torch.cuda.device_of(out):
            kernel[(len(out),)](out, *tensors, **constants, WIDTH=width, WIDE=wide, BLOCK=block, num_warps=warps)

    return launch
