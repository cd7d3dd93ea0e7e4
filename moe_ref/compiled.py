"""What torch.compile cannot look into: operators with the shapes that it asks for, and numbers that it may keep."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moe_ref.capacity import Capacity


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def slots(
    rule: str, factor: float, fewest: int | None, multiple_of: int, eval_factor: float | None, eval_fraction: float,
    tokens: int, experts: int, top_k: int, training: bool,
) -> int:  # fmt: skip
    """Return `Capacity.slots` of a rule that needs no load: exact fractions, whose result the compiler keeps."""
    made = Capacity(rule, factor, fewest, multiple_of, eval_factor, eval_fraction)
    return made.slots(tokens, experts, top_k, training=training)


@torch.library.custom_op("moe_ref::grouped_mm", mutates_args=())
def grouped_mm(x_ND: Tensor, weight_EDH: Tensor, ends_E: Tensor) -> Tensor:
    """Multiply rows up to ends_E[e] by weight e: torch's, whose own registration for the compiler takes bf16 alone."""
    return functional.grouped_mm(x_ND.contiguous(), weight_EDH, offs=ends_E)


@grouped_mm.register_fake
def _(x_ND: Tensor, weight_EDH: Tensor, ends_E: Tensor) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], weight_EDH.shape[2])


@torch.library.custom_op("moe_ref::grouped_mm_weight", mutates_args=())
def grouped_mm_weight(x_ND: Tensor, grad_NH: Tensor, ends_E: Tensor) -> Tensor:
    """Return the gradient of the weights, [E, D, H]: for each expert the product of its rows and their gradients."""
    return functional.grouped_mm(x_ND.contiguous().t(), grad_NH.contiguous(), offs=ends_E)


@grouped_mm_weight.register_fake
def _(x_ND: Tensor, grad_NH: Tensor, ends_E: Tensor) -> Tensor:
    return x_ND.new_empty(ends_E.shape[0], x_ND.shape[1], grad_NH.shape[1])


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad_NH: Tensor) -> tuple[Tensor, Tensor, None]:
    x_ND, weight_EDH, ends_E = ctx.saved_tensors  # type: ignore[attr-defined]
    grad_NH = grad_NH.contiguous()
    return grouped_mm(grad_NH, weight_EDH.transpose(1, 2), ends_E), grouped_mm_weight(x_ND, grad_NH, ends_E), None


grouped_mm.register_autograd(_backward, setup_context=_keep)
