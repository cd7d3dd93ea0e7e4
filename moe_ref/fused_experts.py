"""Experts on a GPU: each product with its bias and activation, and what lies between products, in as few passes as can
be, forward and backward.

An expert's rows are a block of equal length (`EqualBlocks`), or sorted rows whose counts are on the device
(`SortedRows`), or on the host too (`KnownRows`). What is between products is in `commbench_kernels.activations`.

How the products are made:

    one expert after the other    cuBLAS, whose epilogue adds the bias and applies relu. For few, large experts, where
                                  the host knows each one's rows
    batched                       blocks otherwise
    grouped                       rows otherwise: torch's grouped product for bf16, `commbench_kernels.grouped` for fp16
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from commbench_kernels import activations, grouped
from torch import Tensor
from torch.nn import functional

from commbench.communicators.differentiation import ON_CPU, differentiated_once
from moe_ref import fused

FEW, MANY = 4, 1024  # experts and rows of each, for blocks one by one
MANY_OF_KNOWN = 2048  # rows of an expert on average, for sorted rows one by one
_ALIGNED = 16  # bytes: what torch's grouped product asks of rows
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class ExpertRows(Protocol):
    """Says which rows are whose, and multiplies them by what is their expert's."""

    counts_E: Tensor | None  # int64, on the rows' device; None for equal blocks

    def multiply(self, x: Tensor, weight_EIO: Tensor, add_to: Tensor | None = None) -> Tensor:
        """Return each expert's rows times its weight; with add_to, which it may overwrite, the sum of both."""

    def by_weight(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the gradients of the weights [E, I, O]."""

    def affine(self, x: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
        """Return act(x w + b), and of it what the activation's gradient follows from."""


def unsupported(x: Tensor, *weights: Tensor) -> str:
    """Return in words why experts with these weights cannot be computed so; "" where they can."""
    if reason := fused.unsupported(x.device):
        return reason
    dtypes = {x.dtype, *(weight.dtype for weight in weights)}
    if len(dtypes) > 1 or x.dtype not in _FLOATS:
        return f"one floating-point dtype, and there are {', '.join(sorted(map(str, dtypes)))}"
    return ""


def grouped_unsupported(x_ND: Tensor, weight_EDH: Tensor) -> str:
    """Return in words why torch's grouped product would refuse this, or fail in backward; "" if it would not."""
    if not hasattr(functional, "grouped_mm"):
        return f"torch {torch.__version__} has no grouped_mm"
    dtype = x_ND.dtype
    on_gpu = x_ND.is_cuda
    if on_gpu and torch.cuda.get_device_capability(x_ND.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or more"
    if dtype not in ((torch.bfloat16,) if on_gpu else (torch.bfloat16, torch.float16, torch.float32)):
        return f"it does not take {dtype} on {x_ND.device.type}"
    if weight_EDH.dtype != dtype:
        return f"tokens are {dtype} and weights {weight_EDH.dtype}"
    if not len(x_ND):
        return "there are no rows"
    if any(length * x_ND.element_size() % _ALIGNED for length in weight_EDH.shape[1:]):
        return f"rows of {list(weight_EDH.shape[1:])} elements are not multiples of {_ALIGNED} bytes"
    return ""


def rows_of(x: Tensor, counts_E: Tensor | None) -> ExpertRows:
    """Return whose rows of x are whose: equal blocks [E, N, D], or sorted rows [N, D] with counts, on x's device or on
    the host, where large experts are then multiplied one after the other."""
    if counts_E is None:
        return EqualBlocks(x.shape[0] <= FEW and x.shape[1] >= MANY)
    known = not counts_E.is_cuda and len(x) >= MANY_OF_KNOWN * len(counts_E)
    if known or x.dtype not in grouped.DTYPES[:2]:  # for others the host waits
        return KnownRows(counts_E.to(x.device, non_blocking=True), counts_E.tolist())
    return SortedRows(counts_E.to(x.device))


class EqualBlocks:
    """Has blocks of equal length, [E, N, D]."""

    counts_E: Tensor | None = None

    def __init__(self, one_by_one: bool) -> None:
        self.one_by_one = one_by_one

    def multiply(self, x: Tensor, weight_EIO: Tensor, add_to: Tensor | None = None) -> Tensor:
        if self.one_by_one:
            out = x.new_empty(*x.shape[:2], weight_EIO.shape[2]) if add_to is None else add_to
            _one_by_one(x, weight_EIO, out, add=add_to is not None)
            return out
        return torch.bmm(x, weight_EIO) if add_to is None else add_to.baddbmm_(x, weight_EIO)

    def by_weight(self, x: Tensor, grad: Tensor) -> Tensor:
        return torch.bmm(x.transpose(1, 2), grad)

    def affine(self, x: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
        if bias_EO is not None and self.one_by_one:
            out = x.new_empty(*x.shape[:2], weight_EIO.shape[2])
            _affine_one_by_one(x, weight_EIO, bias_EO, out, relu=activation == "relu")
            return (out, out) if activation in activations.BY_OUTPUT else _activated(out, activation)
        if bias_EO is None:
            return _activated(self.multiply(x, weight_EIO), activation)
        return _activated(torch.baddbmm(bias_EO[:, None].to(x.dtype), x, weight_EIO), activation)


class SortedRows:
    """Has rows sorted by expert, counts_E[e] in number, which the host does not know."""

    def __init__(self, counts_E: Tensor) -> None:
        self.counts_E: Tensor | None = counts_E
        self._counts_E = counts_E
        self._ends_E = counts_E.cumsum(0).to(torch.int32)

    def multiply(self, x: Tensor, weight_EIO: Tensor, add_to: Tensor | None = None) -> Tensor:
        if grouped_unsupported(x, weight_EIO):
            made = grouped.grouped_mm(x, weight_EIO, self._counts_E)
        else:
            made = functional.grouped_mm(x.contiguous(), weight_EIO, offs=self._ends_E)
        return made if add_to is None else add_to.add_(made)

    def by_weight(self, x: Tensor, grad: Tensor) -> Tensor:
        x, grad = x.contiguous(), grad.contiguous()
        if grouped_unsupported(x, x.new_empty(0, x.shape[1], grad.shape[1])):
            return grouped.grouped_mm_by_weight(x, grad, self._counts_E)
        found: Tensor = functional.grouped_mm(x.t(), grad, offs=self._ends_E)
        return found

    def affine(self, x: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
        made = self.multiply(x, weight_EIO)
        if bias_EO is None:
            return _activated(made, activation)
        return activations.biased(made, bias_EO, self._counts_E, activation)


class KnownRows:
    """Has rows sorted by expert, of which the host knows how many each has."""

    def __init__(self, counts_E: Tensor, lengths: Sequence[int]) -> None:
        self.counts_E: Tensor | None = counts_E
        self._lengths = list(lengths)

    def multiply(self, x: Tensor, weight_EIO: Tensor, add_to: Tensor | None = None) -> Tensor:
        out = x.new_empty(len(x), weight_EIO.shape[2]) if add_to is None else add_to
        _one_by_one(x.split(self._lengths), weight_EIO, out.split(self._lengths), add=add_to is not None)
        return out

    def by_weight(self, x: Tensor, grad: Tensor) -> Tensor:
        found_EIO = x.new_empty(len(self._lengths), x.shape[1], grad.shape[1])
        for out_IO, x_NI, grad_NO in zip(found_EIO, x.split(self._lengths), grad.split(self._lengths), strict=True):
            torch.mm(x_NI.t(), grad_NO, out=out_IO)
        return found_EIO

    def affine(self, x: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
        if bias_EO is None:
            return _activated(self.multiply(x, weight_EIO), activation)
        out = x.new_empty(len(x), weight_EIO.shape[2])
        parts = out.split(self._lengths)
        _affine_one_by_one(x.split(self._lengths), weight_EIO, bias_EO, parts, relu=activation == "relu")
        return (out, out) if activation in activations.BY_OUTPUT else _activated(out, activation)


def affine(x: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, rows: ExpertRows, activation: str = "none") -> Tensor:
    """Compute act(x w + b) of each expert, with gradients; b may be of a wider dtype, which its gradient then has.

    activation: of `commbench_kernels.activations`.
    """
    y: Tensor = _Affine.apply(x, weight_EIO, bias_EO, rows, activation)
    return y


def swiglu(x: Tensor, gate_EIH: Tensor, up_EIH: Tensor, down_EHO: Tensor, rows: ExpertRows) -> Tensor:
    """Compute (silu(x gate) * x up) down of each expert, with gradients."""
    y: Tensor = _SwiGLU.apply(x, gate_EIH, up_EIH, down_EHO, rows)
    return y


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, rows: ExpertRows, activation: str
    ) -> Tensor:
        out, kept = rows.affine(x, weight_EIO, bias_EO, activation)
        ctx.save_for_backward(x, weight_EIO, None if activation == "none" else kept)
        ctx.rows, ctx.activation, ctx.bias_dtype = rows, activation, None if bias_EO is None else bias_EO.dtype
        return out

    @staticmethod
    @differentiated_once("experts by fused kernels", ON_CPU)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_EIO, kept = ctx.saved_tensors
        rows = ctx.rows
        by_x, by_weight, by_bias = ctx.needs_input_grad[:3]
        grad, sum_EO = grad.contiguous(), None
        if kept is not None:
            grad, sum_EO = activations.biased_backward(grad, kept, rows.counts_E, ctx.activation)
        elif by_bias:
            wide = torch.promote_types(grad.dtype, ctx.bias_dtype)
            sum_EO = grad.sum(1, dtype=wide) if rows.counts_E is None else fused.segment_sum(grad, rows.counts_E)
        return (
            rows.multiply(grad, weight_EIO.transpose(1, 2)) if by_x else None,
            rows.by_weight(x, grad) if by_weight else None,
            sum_EO.to(ctx.bias_dtype) if by_bias and sum_EO is not None else None,
            None,
            None,
        )


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_EIH: Tensor, up_EIH: Tensor, down_EHO: Tensor, rows: ExpertRows) -> Tensor:
        gate, up = rows.multiply(x, gate_EIH), rows.multiply(x, up_EIH)
        hidden = activations.silu_mul(gate, up)
        ctx.save_for_backward(x, gate_EIH, up_EIH, down_EHO, gate, up, hidden)
        ctx.rows = rows
        return rows.multiply(hidden, down_EHO)

    @staticmethod
    @differentiated_once("experts by fused kernels", ON_CPU)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_EIH, up_EIH, down_EHO, gate, up, hidden = ctx.saved_tensors
        rows, grad = ctx.rows, grad.contiguous()
        wanted = ctx.needs_input_grad
        by_down = rows.by_weight(hidden, grad) if wanted[3] else None
        if not any(wanted[:3]):
            return None, None, None, by_down, None
        by_gate, by_up = activations.silu_mul_backward(rows.multiply(grad, down_EHO.transpose(1, 2)), gate, up)
        by_x = None
        if wanted[0]:
            by_x = rows.multiply(by_gate, gate_EIH.transpose(1, 2))
            by_x = rows.multiply(by_up, up_EIH.transpose(1, 2), add_to=by_x)
        return (
            by_x,
            rows.by_weight(x, by_gate) if wanted[1] else None,
            rows.by_weight(x, by_up) if wanted[2] else None,
            by_down,
            None,
        )


def _activated(pre: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return act(pre), and of both what its gradient follows from; relu is in place."""
    if activation in activations.BY_OUTPUT:
        out = pre.relu_() if activation == "relu" else pre
        return out, out
    return activations.ACTIVATIONS[activation](pre), pre


def _one_by_one(x: Iterable[Tensor], weight_EIO: Tensor, out: Iterable[Tensor], *, add: bool) -> None:
    for x_NI, weight_IO, out_NO in zip(x, weight_EIO, out, strict=True):
        if add:
            out_NO.addmm_(x_NI, weight_IO)
        else:
            torch.mm(x_NI, weight_IO, out=out_NO)


def _affine_one_by_one(
    x: Iterable[Tensor], weight_EIO: Tensor, bias_EO: Tensor, out: Iterable[Tensor], *, relu: bool
) -> None:
    """Add the bias, and apply relu, as each product is written: baddbmm takes a pass more for the one and another for
    the other."""
    for x_NI, weight_IO, bias_O, out_NO in zip(x, weight_EIO, bias_EO.to(weight_EIO.dtype), out, strict=True):
        if relu:
            torch._addmm_activation(bias_O, x_NI, weight_IO, out=out_NO)
        else:
            torch.addmm(bias_O, x_NI, weight_IO, out=out_NO)
