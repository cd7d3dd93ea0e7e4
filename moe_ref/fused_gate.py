"""A gate's routing from its logits by the kernels of `commbench_kernels.routing`, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from commbench_kernels import routing as kernels
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_ref import fused

if TYPE_CHECKING:
    from moe_ref.gate import GateConfig

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


def unsupported(config: GateConfig, logits_TE: Tensor) -> str:
    """Return in words why the kernels do not do what this gate does; "" where they do."""
    if reason := fused.unsupported(logits_TE.device):
        return f"it needs {reason}"
    if logits_TE.dtype not in _DTYPES or not len(logits_TE):
        return f"logits of shape {list(logits_TE.shape)} and {logits_TE.dtype}"
    if config.experts > kernels.MOST_EXPERTS:
        return f"more than {kernels.MOST_EXPERTS} experts"
    if config.order != "position" or config.second != "all":
        return f"order={config.order}, second={config.second}"
    return ""


def route(
    logits_TE: Tensor,
    real_T: Tensor | None,
    config: GateConfig,
    places: Callable[[Tensor], tuple[int | None, int]],
) -> FusedRouting:
    """Route tokens. places: from the loads [E], the capacity C, None for dropless, and the rows of the buffer."""
    return FusedRouting(*_Route.apply(logits_TE, real_T, config, places))  # type: ignore[no-untyped-call]


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_TE: Tensor,
        real_T: Tensor | None,
        config: GateConfig,
        places: Callable[[Tensor], tuple[int | None, int]],
    ) -> tuple[Tensor, ...]:
        chosen = kernels.choose(logits_TE, config.top_k, real_T)
        capacity, rows = places(chosen.loads)
        ctx.normalise = config.normalise
        found = kernels.assign(chosen, capacity, rows, normalise=config.normalise, dtype=logits_TE.dtype, real=real_T)
        ctx.real_T = real_T
        ctx.save_for_backward(logits_TE, *chosen, found.slots)
        others = (chosen.experts, found.slots, found.rows, found.choice, chosen.loads, chosen.firsts)
        ctx.mark_non_differentiable(*others)
        return found.weights, chosen.sums, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TK: Tensor, grad_E: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        logits_TE, *rest, slots_TK = ctx.saved_tensors
        grad_TE = kernels.backward(
            grad_TK, grad_E, logits_TE, kernels.Chosen(*rest), slots_TK, normalise=ctx.normalise, real=ctx.real_T
        )
        return grad_TE, None, None, None
