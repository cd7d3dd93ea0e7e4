"""Rows into the buffer and back by torch's look-ups, with gradients that are look-ups too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Gradients of these two are written in place. Where they shall be differentiated in turn (create_graph=True,
# torch.func), torch's own functions compute them instead, which make temporaries.


class SparseDispatch(torch.autograd.Function):
    """Makes the buffer [R, D] of x [T, D]; choice_R[r] = t K + k, or -1, and rows_TK is the inverse."""

    @staticmethod
    def forward(x_TD: Tensor, rows_TK: Tensor, choice_R: Tensor) -> Tensor:
        return _gather(x_TD, choice_R // rows_TK.shape[1])  # -1 stays -1

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        (rows_TK,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            wide = torch.promote_types(grad_RD.dtype, torch.float32)
            taken = [_where_there(grad_RD, rows_TK[:, k]).to(wide) for k in range(rows_TK.shape[1])]
            return torch.stack(taken).sum(0).to(grad_RD.dtype), None, None
        grad_TD = _gather(grad_RD, rows_TK[:, 0])
        if rows_TK.shape[1] > 2:  # a sum of two is rounded once, as it is
            grad_TD = grad_TD.to(torch.promote_types(grad_RD.dtype, torch.float32))
        for k in range(1, rows_TK.shape[1]):  # temporaries of [T, D] one after the other, not [T, K, D]
            grad_TD += _gather(grad_RD, rows_TK[:, k])
        return grad_TD.to(grad_RD.dtype), None, None


class SparseCombine(torch.autograd.Function):
    """Makes y [T, D] of the buffer [R, D] and weights_TK, with rows_TK and choice_R as in `SparseDispatch`."""

    @staticmethod
    def forward(buffer_RD: Tensor, weights_TK: Tensor, rows_TK: Tensor, choice_R: Tensor) -> Tensor:
        y_TD = weights_TK[:, :1] * _gather(buffer_RD, rows_TK[:, 0])
        for k in range(1, rows_TK.shape[1]):
            y_TD.addcmul_(_gather(buffer_RD, rows_TK[:, k]), weights_TK[:, k, None])
        return y_TD.to(buffer_RD.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        buffer_RD, weights_TK, rows_TK, choice_R = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_combine_backward(buffer_RD, weights_TK, rows_TK, choice_R, grad_TD), None, None
        # In place: multiplied in the wider dtype, stored in the gradient's, which is the buffer's.
        weights_R1 = _gather(weights_TK.reshape(-1, 1), choice_R)
        grad_RD = _gather(grad_TD, choice_R // rows_TK.shape[1]).mul_(weights_R1)
        wide = torch.promote_types(buffer_RD.dtype, weights_TK.dtype)
        grad_TK = _products(buffer_RD, rows_TK, grad_TD, wide).masked_fill_(rows_TK < 0, 0)
        return grad_RD, grad_TK.to(weights_TK.dtype), None, None


def _combine_backward(
    buffer_RD: Tensor, weights_TK: Tensor, rows_TK: Tensor, choice_R: Tensor, grad_TD: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients by buffer and weights, differentiable in turn."""
    top_k, wide = rows_TK.shape[1], torch.promote_types(buffer_RD.dtype, weights_TK.dtype)
    weights_R1 = _where_there(weights_TK.to(wide).reshape(-1, 1), choice_R)
    wide_TD = grad_TD.to(wide)
    grad_RD = _where_there(wide_TD, choice_R // top_k) * weights_R1
    grad_TK = torch.stack([(_where_there(buffer_RD, rows_TK[:, k]) * wide_TD).sum(1) for k in range(top_k)], dim=1)
    return grad_RD.to(buffer_RD.dtype), grad_TK.to(weights_TK.dtype)


def _where_there(from_ND: Tensor, index_M: Tensor) -> Tensor:
    """Do what `_gather` does, by functions that torch differentiates."""
    taken_MD = _take(from_ND, index_M)
    return torch.where(index_M[:, None] < 0, torch.zeros_like(taken_MD), taken_MD)


def _products(buffer_RD: Tensor, rows_TK: Tensor, grad_TD: Tensor, wide: torch.dtype) -> Tensor:
    """Sum row rows_TK[t, k] of the buffer times row t of the gradient: [T, K]; anything where there is no row."""
    (tokens, top_k), width = rows_TK.shape, buffer_RD.shape[1]
    if buffer_RD.is_cuda and buffer_RD.dtype in (torch.float16, torch.bfloat16) and wide != torch.float64:
        # Tensor cores sum in fp32, and no row need be written in fp32 for that.
        taken_TKD = _take(buffer_RD, rows_TK.flatten()).view(tokens, top_k, width)
        return torch.bmm(taken_TKD, grad_TD[:, :, None], out_dtype=torch.float32)[:, :, 0]
    wide_TD = grad_TD.to(wide)
    return torch.stack([(_take(buffer_RD, rows_TK[:, k]) * wide_TD).sum(1) for k in range(top_k)], dim=1)


def _gather(from_ND: Tensor, index_M: Tensor) -> Tensor:
    """Put row index_M[i] of from_ND in row i, zeros where the index is -1: [M, D]."""
    taken_MD = _take(from_ND, index_M)
    _as_words(taken_MD).masked_fill_(index_M[:, None] < 0, 0)
    return taken_MD


def _as_words(rows_MD: Tensor) -> Tensor:
    """View rows as int64, where their length allows: masks then cost half as much on a GPU. All bits 0 is 0.0."""
    fits = rows_MD.is_contiguous() and rows_MD.shape[1] * rows_MD.element_size() % 8 == 0
    return rows_MD.view(torch.int64) if fits else rows_MD


def _take(from_ND: Tensor, index_M: Tensor) -> Tensor:
    """Put row index_M[i] of from_ND in row i, anything where the index is -1: [M, D]."""
    if not len(from_ND):
        return from_ND.new_zeros(len(index_M), from_ND.shape[1])
    return from_ND.index_select(0, index_M.clamp(min=0))
