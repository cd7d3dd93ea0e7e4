"""What stands between the two products of an expert, one pass each: biases, activations, and their gradients.

biased             act(row + bias of the row's expert)
biased_backward    its gradient by the rows, and by the biases: a sum over each expert's rows
silu_mul           silu(gate) x up
silu_mul_backward  its gradients by both

Rows are sorted by expert, counts[e] in number, or an expert has an equal block of them. Each number is read once and
each result written once, where plain torch needs a pass for the bias of each row, one to add it, one for the
activation, and as many backward. Arithmetic is in fp32, or in fp64 for fp64 rows; sums have a fixed order. Beside each
stands its reference in plain torch. Roofline: the bytes that are read and written, at the memory's bandwidth.

Needs a GPU and triton. With TRITON_INTERPRET=1 triton runs on a CPU, slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
BY_OUTPUT = ("relu", "none")  # activations whose gradient follows from what they gave
_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}
_PROGRAMS = 2048  # about, for each block of columns: enough for every multiprocessor
_COLUMNS, _ROWS = 128, 16  # of a tile of rows
_WARPS = 4
_BLOCK = 4096  # elements of a program of `silu_mul`


def biased(rows: Tensor, bias: Tensor, counts: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return act(rows + bias of their expert) [N, O], in rows' dtype, and what `biased_backward` needs to be kept.

    rows: [N, O], which are overwritten. bias: [E, O]. counts: int64 [E], their sum N. What is kept is the output itself
    for `BY_OUTPUT`, else rows + bias.
    """
    rows = rows.contiguous()
    out = rows if activation in BY_OUTPUT else torch.empty_like(rows)
    if rows.numel():
        _by_expert("biased", rows, counts, len(counts), out, rows, bias.contiguous(), activation=activation)
    return out, rows


def biased_reference(rows: Tensor, bias: Tensor, counts: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Compute `biased` in plain torch; `rows` stay as they are."""
    wide = _wide(rows)
    pre = rows.to(wide) + bias.to(wide).repeat_interleave(counts, dim=0)  # waits for the device
    out = ACTIVATIONS[activation](pre).to(rows.dtype)
    return out, out if activation in BY_OUTPUT else pre.to(rows.dtype)


def biased_backward(grad: Tensor, kept: Tensor, counts: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    """Return the gradients of act(rows + bias) by the rows, in their dtype, and by the biases, [E, O] in fp32 at least.

    grad, kept: [N, O] with int64 counts [E], whose sum is N; or [E, N, O], counts=None.
    """
    width = grad.shape[-1]
    grad, kept = grad.contiguous(), kept.contiguous()
    experts = len(grad) if counts is None else len(counts)
    by_rows = torch.empty_like(kept)
    if not grad.numel():
        return by_rows, grad.new_zeros(experts, width, dtype=_wide(grad))
    parts = _parts(experts, grad.numel() // width)
    partial = grad.new_empty(experts, parts, width, dtype=_wide(grad))
    _by_expert("biased_backward", grad, counts, experts, by_rows, partial, grad, kept, activation=activation)
    return by_rows, partial.sum(1)


def biased_backward_reference(
    grad: Tensor, kept: Tensor, counts: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Compute `biased_backward` in plain torch."""
    wide = _wide(grad)
    if activation == "relu":
        by_rows = grad.to(wide) * (kept > 0)
    else:
        with torch.enable_grad():
            pre = kept.to(wide).detach().requires_grad_()
            (by_rows,) = torch.autograd.grad(ACTIVATIONS[activation](pre), pre, grad.to(wide))
    if counts is None:
        return by_rows.to(kept.dtype), by_rows.sum(1)
    expert = torch.arange(len(counts), device=grad.device).repeat_interleave(counts)  # waits for the device
    sums = torch.zeros(len(counts), grad.shape[1], dtype=wide, device=grad.device)
    return by_rows.to(kept.dtype), sums.index_add_(0, expert, by_rows)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Compute silu(gate) x up, of equal shapes and dtypes."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _elementwise("silu_mul", gate, out, gate, up)
    return out


def silu_mul_reference(gate: Tensor, up: Tensor) -> Tensor:
    """Compute `silu_mul` in plain torch."""
    return (functional.silu(gate.to(_wide(gate))) * up).to(gate.dtype)


def silu_mul_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `silu_mul` by gate and up."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    by_gate, by_up = torch.empty_like(gate), torch.empty_like(up)
    _elementwise("silu_mul_backward", gate, by_gate, by_up, grad, gate, up)
    return by_gate, by_up


def silu_mul_backward_reference(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `silu_mul_backward` in plain torch."""
    with torch.enable_grad():
        both = [value.to(_wide(value)).detach().requires_grad_() for value in (gate, up)]
        by_gate, by_up = torch.autograd.grad(functional.silu(both[0]) * both[1], both, grad.to(_wide(grad)))
    return by_gate.to(gate.dtype), by_up.to(up.dtype)


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _parts(experts: int, rows: int) -> int:
    """Return among how many programs the rows of one expert divide."""
    return max(1, min(64, _PROGRAMS // experts, rows // _ROWS))


def _by_expert(name: str, rows: Tensor, counts: Tensor | None, experts: int, *tensors: Tensor, activation: str) -> None:
    """Launch a kernel of which each program has a part of one expert's rows, and some columns."""
    width = rows.shape[-1]
    of_all = rows.numel() // width
    ends = rows if counts is None else counts.cumsum(0)  # a pointer that is not read, for null
    parts = _parts(experts, of_all)
    _launch(name, (experts, parts, -(-width // _COLUMNS)), *tensors, ends, of_all // experts, width,
            SORTED=counts is not None, PARTS=parts, COLUMNS=_COLUMNS, ROWS=_ROWS, like=rows,
            ACTIVATION=_NUMBERS[activation], warps=_WARPS)  # fmt: skip


def _elementwise(name: str, like: Tensor, *tensors: Tensor) -> None:
    if like.numel():
        _launch(name, (-(-like.numel() // _BLOCK),), *tensors, like.numel(), BLOCK=_BLOCK, like=like, warps=8)


def _launch(name: str, grid: tuple[int, ...], *arguments: Any, like: Tensor, warps: int, **constants: int) -> None:
    import triton.language as tl

    from commbench_kernels import activations_triton

    wide = tl.float64 if _wide(like) == torch.float64 else tl.float32
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        getattr(activations_triton, name)[grid](*arguments, WIDE=wide, **constants, num_warps=warps)
