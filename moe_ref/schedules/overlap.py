"""Exchanges that overlap with what is computed, forward and backward.

    call = start(comm, "all_to_all", inp)    issues the exchange
    ...                                      computes something else
    out = call.wait()                        waits for it

Both are nodes of autograd's graph. Backward, `wait` issues the adjoint and `start` waits for it. autograd runs nodes
that are ready in the reverse order of their making, so what lay between the two forward is computed backward between
them as well, and the backward pass overlaps as the forward pass does. All ranks make the same nodes, so they issue the
same order of exchanges. Tutel (arXiv 2206.03382, 3.3) overlaps both passes too; MoNTA's code the forward pass only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from commbench import collectives
from commbench.communicators.autograd import adjoint_arguments, output_shape, way_back
from commbench.communicators.base import CommLike
from commbench.communicators.communicator import Communicator
from commbench.communicators.with_payload import EXCHANGES, PayloadComm
from commbench.communicators.wrapper import bare
from moe_ref.kept_buffers import KeptBuffers


class AsyncCollective:
    """A collective on its way. After `wait` it is of use to autograd only."""

    def __init__(
        self, comm: CommLike, collective: str, arguments: dict[str, Any], *, async_op: bool, kept: KeptBuffers | None
    ) -> None:
        self.comm, self.collective, self.arguments, self.async_op = comm, collective, arguments, async_op
        self._kept, self._number = kept, 0 if kept is None else kept.next_number()
        self.pending: Any = None  # of the forward pass, then of the backward pass
        self.back: AsyncCollective | None = None  # the adjoint, where it will be differentiated in turn
        self.out: Tensor | None = None  # what is being written to

    def wait(self) -> Tensor:
        """Return the output, once it is there."""
        coming, self.out = self.out, None
        out: Tensor = _Wait.apply(coming, self)  # type: ignore[no-untyped-call]
        return out

    def adjoint(self, gradient: Tensor) -> AsyncCollective:
        """Start the adjoint as a node of autograd's graph of its own, in new memory."""
        name, arguments = collectives.get(self.collective).adjoint, adjoint_arguments(self.collective, self.arguments)
        return start(way_back(self.comm), name, gradient, async_op=self.async_op, **arguments)

    def issue(self, inp: Tensor, *, adjoint: bool = False) -> Tensor:
        """Start the collective, or its adjoint. What is returned is being written to until `finish`."""
        name = collectives.get(self.collective).adjoint if adjoint else self.collective
        arguments = adjoint_arguments(self.collective, self.arguments) if adjoint else self.arguments
        shape = output_shape(name, tuple(inp.shape), arguments, self.comm.size)
        if self._kept is None:
            out = inp if self._stays(inp) else inp.new_empty(shape)
        else:
            out = self._kept.empty(self.comm, name, shape, inp, (self._number, "adjoint" if adjoint else "forward"))
        comm = way_back(self.comm) if adjoint else self.comm
        self.pending = getattr(comm, name)(out, inp, **arguments, async_op=self.async_op)
        return out

    def _stays(self, inp: Tensor) -> bool:
        """Return whether what arrives is what is sent, in place: one rank alone, and nothing is quantised."""
        if self.comm.size > 1 or self.collective not in EXCHANGES or isinstance(self.comm, PayloadComm):
            return False
        return inp.is_contiguous() and isinstance(bare(self.comm), Communicator)

    def finish(self) -> None:
        """Wait for what `issue` has started, if that still runs."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.wait()


def start(
    comm: CommLike, collective: str, inp: Tensor, *, async_op: bool = True, kept: KeptBuffers | None = None,
    **arguments: Any,
) -> AsyncCollective:  # fmt: skip
    """Issue a collective on a contiguous tensor, with the arguments of the communicator's method.

    It is all_to_all, all_to_allv, all_gather, reduce_scatter, all_reduce or tp_all_to_all.

    async_op: false where there is nothing to compute meanwhile: then it is an ordinary call, whose backward is one too.
    kept: where the output is, and the gradient's on the way back; None: in new memory.
    The tensor must not be written to before `AsyncCollective.wait`, nor be freed: the graph or the caller holds it.
    """
    call = AsyncCollective(comm, collective, arguments, async_op=async_op, kept=kept)
    call.out = _Start.apply(inp, call)  # type: ignore[no-untyped-call]
    return call


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inp: Tensor, call: AsyncCollective) -> Tensor:
        ctx.call, ctx.shape = call, inp.shape
        return call.issue(inp.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        back, ctx.call.back = ctx.call.back, None
        if back is not None:
            return back.wait().view(ctx.shape), None
        ctx.call.finish()
        out, ctx.call.out = ctx.call.out, None
        return out.view(ctx.shape), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, call: AsyncCollective) -> Tensor:
        ctx.call = call
        call.finish()
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # What this issues may have another shape than what it is the gradient of, so it goes another way.
        if torch.is_grad_enabled():
            ctx.call.back = ctx.call.adjoint(gradient.contiguous())
            return gradient, None
        ctx.call.out = ctx.call.issue(gradient.contiguous(), adjoint=True)
        return gradient, None
