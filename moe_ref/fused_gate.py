"""A gate's routing from its logits by the kernels of `commbench_kernels.routing`, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from commbench_kernels import routing as kernels
from torch import Tensor

from commbench.communicators.differentiation import ON_CPU, differentiated_once
from moe_ref import fused

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class FusedRouting(NamedTuple):
    """What the kernels make of logits [T, E].

    weights_TK and sums_E (scores summed over real tokens, fp32) have gradients. experts_TK, slots_TK, rows_TK [T, K];
    choice_R, the inverse of rows_TK; loads_E, and firsts_E of first choices alone: all int64.
    """

    weights_TK: Tensor
    sums_E: Tensor
    experts_TK: Tensor
    slots_TK: Tensor
    rows_TK: Tensor
    choice_R: Tensor
    loads_E: Tensor
    firsts_E: Tensor


def unsupported(logits_TE: Tensor, *, order: str, second: str) -> str:
    """Return in words why the kernels cannot route so; "" where they can. order, second: `GateConfig`'s."""
    if reason := fused.unsupported(logits_TE.device):
        return f"it needs {reason}"
    if logits_TE.dtype not in _DTYPES or not len(logits_TE):
        return f"logits of shape {list(logits_TE.shape)} and {logits_TE.dtype}"
    if logits_TE.shape[1] > kernels.MOST_EXPERTS:
        return f"more than {kernels.MOST_EXPERTS} experts"
    if order != "position" or second != "all":
        return f"order={order}, second={second}"
    return ""


def route(
    logits_TE: Tensor,
    real_T: Tensor | None,
    places: Callable[[Tensor], tuple[int | None, int]],
    *,
    top_k: int,
    normalise: str,
) -> FusedRouting:
    """Route tokens.

    real_T: false for padding. places: from the loads [E], the capacity C, None for dropless, and the buffer's rows.
    """
    return FusedRouting(*_Route.apply(logits_TE, real_T, places, top_k, normalise))  # type: ignore[no-untyped-call]


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_TE: Tensor,
        real_T: Tensor | None,
        places: Callable[[Tensor], tuple[int | None, int]],
        top_k: int,
        normalise: str,
    ) -> tuple[Tensor, ...]:
        chosen = kernels.choose(logits_TE, top_k, real_T)
        capacity, rows = places(chosen.loads)
        ctx.normalise = normalise
        found = kernels.assign(chosen, capacity, rows, normalise=normalise, dtype=logits_TE.dtype, real=real_T)
        ctx.real_T = real_T
        ctx.save_for_backward(logits_TE, *chosen, found.slots)
        others = (chosen.experts, found.slots, found.rows, found.choice, chosen.loads, chosen.firsts)
        ctx.mark_non_differentiable(*others)
        return found.weights, chosen.sums, *others

    @staticmethod
    @differentiated_once("a gate by fused kernels", ON_CPU)
    def backward(ctx: Any, grad_TK: Tensor, grad_E: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        logits_TE, *rest, slots_TK = ctx.saved_tensors
        grad_TE = kernels.backward(
            grad_TK, grad_E, logits_TE, kernels.TopKChoices(*rest), slots_TK, normalise=ctx.normalise, real=ctx.real_T
        )
        return grad_TE, None, None, None, None
