"""Kernels of `commbench_kernels.rows` as the layer uses them: `FusedDispatcher`'s, with gradients, and a bias's."""

from __future__ import annotations

from typing import Any

import torch
from commbench_kernels import rows
from torch import Tensor

from commbench.communicators.differentiation import ON_CPU, differentiated_once


def unsupported(device: torch.device) -> str:
    """Say in words what the kernels lack on this device; "" where nothing is missing.

    A compiler traces plain operations: it looks neither into kernels that are launched by hand, nor into imports.
    """
    if torch.compiler.is_compiling():
        return "a call that no compiler traces"
    return rows.unsupported(device)


def segment_sum(rows_NO: Tensor, counts_E: Tensor) -> Tensor:
    """Sum the rows of each expert, sorted by expert and counts_E[e] in number: [E, O], in fp32 at least."""
    return rows.segment_sum(rows_NO, counts_E)


class Dispatch(torch.autograd.Function):
    """Makes the buffer [R, D] of x [T, D]; choice_R[r] = t K + k, or -1, and rows_TK is the inverse."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, rows_TK: Tensor, choice_R: Tensor) -> Tensor:
        ctx.save_for_backward(rows_TK)
        return rows.scatter(x_TD, rows_TK, choice_R)

    @staticmethod
    @differentiated_once("permute=fused", ON_CPU)
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        (rows_TK,) = ctx.saved_tensors
        return rows.gather_sum(grad_RD, rows_TK), None, None


class Combine(torch.autograd.Function):
    """Makes y [T, D] of the buffer [R, D] and weights_TK, with rows_TK and choice_R as in `Dispatch`."""

    @staticmethod
    def forward(ctx: Any, buffer_RD: Tensor, weights_TK: Tensor, rows_TK: Tensor, choice_R: Tensor) -> Tensor:
        ctx.save_for_backward(buffer_RD, weights_TK, rows_TK, choice_R)
        return rows.gather_sum(buffer_RD, rows_TK, weights_TK)

    @staticmethod
    @differentiated_once("permute=fused", ON_CPU)
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        buffer_RD, weights_TK, rows_TK, choice_R = ctx.saved_tensors
        return *rows.combine_backward(buffer_RD, grad_TD, rows_TK, choice_R, weights_TK), None, None
