"""Exchanges where t ranks hold the same tokens and have the experts in pieces: to the experts, and back.

W = G t ranks: G tensor-parallel groups of t consecutive ranks. The ranks of a group hold the same tokens, so they
route alike and have the same dispatch buffer [E, C, D]; its block g, of E / G experts, is for group g. Each rank has
1 / t of H of each of its group's experts, so what they give is a summand of the output (DeepSpeed-TED, Singh et al.,
arXiv 2303.06318). Suffixes here: G groups, P ranks of a group, E experts of one group where G is there too, N rows.

    dispatch    the buffer [E, C, D], the same on a group's ranks -> rows for its experts [E, N, D], the same as well
    combine     summands of what experts make of these rows, [E, N, D] -> their sums, in the buffer they belong to

Each is the other's adjoint: the gradient of rows that one piece of the experts has read is a summand of theirs, and
the gradient of a sum is that of each summand. So the backward pass of one is the forward pass of the other, with
whatever it overlaps.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from commbench.communicators.base import CommLike
from commbench.communicators.prepared import Pending
from moe_ref.profiling import labelled
from moe_ref.schedules.base import Layer
from moe_ref.sharding import own_weights


class TPExchange(Protocol):
    """An exchange to the experts and back, without gradients: `dispatch` and `combine` below add them."""

    def dispatch(self, buffer_ECD: Tensor) -> Tensor:
        """Send the buffer [E, C, D] to its experts: [E, N, D]."""

    def combine(self, rows_END: Tensor) -> Tensor:
        """Bring the sums of summands [E, N, D] back: [E, C, D]."""


def dispatch(buffer_ECD: Tensor, exchange: TPExchange) -> Tensor:
    """Send the buffer [E, C, D] to its experts: [E, N, D], with its gradient."""
    rows_END: Tensor = _TPDispatch.apply(buffer_ECD, exchange)  # type: ignore[no-untyped-call]
    return rows_END


def combine(rows_END: Tensor, exchange: TPExchange) -> Tensor:
    """Bring the sums of summands [E, N, D] back: [E, C, D], with its gradient."""
    buffer_ECD: Tensor = _TPCombine.apply(rows_END, exchange)  # type: ignore[no-untyped-call]
    return buffer_ECD


def apply_experts(layer: Layer, exchange: TPExchange, buffer_ECD: Tensor) -> Tensor:
    """Send the dispatch buffer to the experts and back: what they make of it, in its shape."""
    with labelled("moe::dispatch"):
        rows_END = dispatch(buffer_ECD, exchange)
    out_END = layer.apply_experts(rows_END, weights=own_weights(layer.experts))
    with labelled("moe::combine"):
        return combine(out_END, exchange)


class _TPDispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, buffer_ECD: Tensor, exchange: TPExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.dispatch(buffer_ECD.detach().contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return combine(gradients[0], ctx.exchange), None


class _TPCombine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_END: Tensor, exchange: TPExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.combine(rows_END.detach().contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return dispatch(gradients[0], ctx.exchange), None


class AsyncCall:
    """A call on its way, with its buffers. It carries no gradient."""

    def __init__(self, comm: CommLike, collective: str, inp: Tensor) -> None:
        """collective: all_to_all or all_gather, along dimension 0."""
        rows = len(inp) * (comm.size if collective == "all_gather" else 1)
        self._out, inp = inp.new_empty(rows, *inp.shape[1:]), inp.contiguous()
        self._pending: Pending | None = getattr(comm, collective)(self._out, inp, async_op=True)

    def wait(self) -> Tensor:
        """Return the output, once it is there. More than once is fine."""
        if self._pending is not None:
            self._pending.wait()
        return self._out


def by_group(buffer_ECD: Tensor, groups: int) -> Tensor:
    """View [E, C, D] as [G, E / G, C, D]."""
    experts, capacity, width = buffer_ECD.shape
    return buffer_ECD.view(groups, experts // groups, capacity, width)


def by_tp_rank(blocks: Tensor, tp_size: int) -> Tensor:
    """View [.., .., P n, D] as [.., .., P, n, D]: the slots that each rank of a group carries."""
    one, two, slots, width = blocks.shape
    return blocks.view(one, two, tp_size, slots // tp_size, width)


def by_sender(arrived: Tensor, senders: int) -> Tensor:
    """View dimension 0 as two, of which the first is that of the ranks, or groups, from which it came."""
    return arrived.view(senders, len(arrived) // senders, *arrived.shape[1:])
