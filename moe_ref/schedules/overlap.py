"""Exchanges that run beside what is computed, forward and backward.

    flight = start(comm, "all_to_all", inp)      issues the exchange
    ...                                          computes something else
    out = flight.land()                          waits for it

Each half is a node of autograd's graph. Backward, `land` issues the adjoint and `start` waits for it. autograd runs
nodes that are ready in the reverse order of their making, so what lay between the two halves forward is computed
backward between them as well, and the backward pass overlaps as the forward pass does. All ranks make the same nodes,
so they issue the same order of exchanges. Tutel (arXiv 2206.03382, 3.3) overlaps both passes too; MoNTA's code the
forward pass only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from commbench import collectives
from commbench.communicators.autograd import adjoint_arguments, output_shape
from commbench.communicators.base import CommLike
from moe_ref.kept_buffers import Rooms


class Flight:
    """A collective on its way. Of no use after `land`, but to autograd."""

    def __init__(
        self, comm: CommLike, collective: str, arguments: dict[str, Any], *, beside: bool, rooms: Rooms | None
    ) -> None:
        self.comm, self.collective, self.arguments, self.beside = comm, collective, arguments, beside
        self._rooms, self._place = rooms, 0 if rooms is None else rooms.number()
        self.pending: Any = None  # of the forward pass, then of the backward pass
        self.out: Tensor | None = None  # what is being written to

    def land(self) -> Tensor:
        """The output, once it is there."""
        coming, self.out = self.out, None
        out: Tensor = _Land.apply(coming, self)  # type: ignore[no-untyped-call]
        return out

    def issue(self, inp: Tensor, *, adjoint: bool = False) -> Tensor:
        """Start it. What is returned is being written to until `wait`."""
        name = collectives.get(self.collective).adjoint if adjoint else self.collective
        arguments = adjoint_arguments(self.collective, self.arguments) if adjoint else self.arguments
        shape = output_shape(name, tuple(inp.shape), arguments, self.comm.size)
        if self._rooms is None:
            out = inp.new_empty(shape)
        else:
            out = self._rooms.empty(self.comm, name, shape, inp, (self._place, "back" if adjoint else "there"))
        self.pending = getattr(self.comm, name)(out, inp, **arguments, async_op=self.beside)
        return out

    def wait(self) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.wait()


def start(
    comm: CommLike, collective: str, inp: Tensor, *, beside: bool = True, rooms: Rooms | None = None, **arguments: Any
) -> Flight:
    """Issue a collective on a contiguous tensor: all_to_all, all_to_allv, all_gather, reduce_scatter, all_reduce or
    tp_all_to_all, with the arguments of the communicator's method.

    beside: false where there is nothing to compute meanwhile: then it is an ordinary call, whose backward is one too.
    rooms: where the output is, and the gradient's on the way back; null: in new memory.
    The tensor must not be written to before `Flight.land`, nor be freed, for which the graph or the caller holds it.
    """
    flight = Flight(comm, collective, arguments, beside=beside, rooms=rooms)
    flight.out = _Start.apply(inp, flight)  # type: ignore[no-untyped-call]
    return flight


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inp: Tensor, flight: Flight) -> Tensor:
        ctx.flight, ctx.shape = flight, inp.shape
        return flight.issue(inp.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.flight.wait()
        out, ctx.flight.out = ctx.flight.out, None
        return out.view(ctx.shape), None


class _Land(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        flight.wait()
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # What this issues may have another shape than what it is the gradient of, so it goes another way.
        ctx.flight.out = ctx.flight.issue(gradient.contiguous(), adjoint=True)
        return gradient, None
