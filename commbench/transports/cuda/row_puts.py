"""Dispatch and combine by one-sided writes between GPUs: the kernels of commbench_kernels, on a rank's buffers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from commbench_kernels import routed, scratch
from commbench_kernels.routed import RowPeers, RowShape

from commbench.transports.base import Array, Ready, RowPutPlan, Work
from commbench.transports.cuda.one_sided import Enqueue, PeerCalls
from commbench.transports.cuda.symmetric_memory import PeerMemory

_NUMBER_BYTES = 4  # of a weight, of an expert


class GpuRowPuts(PeerCalls):
    """The dispatches, or the combines, of one algorithm on one communicator."""

    def __init__(
        self,
        memory: PeerMemory,
        index: int,
        members: Sequence[int],
        rank: int,
        plan: RowPutPlan,
        side_stream: torch.cuda.Stream | None,
    ) -> None:
        """Collective."""
        super().__init__(memory, index, members, plan.scratch_bytes, side_stream)
        self._rank, self._plan, self._shape = rank, plan, shape_of(plan)
        device = torch.device("cuda", index)
        known: tuple[npt.NDArray[Any], ...] = () if plan.told else (plan.experts[rank],)
        if plan.combines:
            known = (
                routed.places(plan.experts, rank, self._shape),
                plan.weights,
                routed.senders(plan.experts, self._shape).view("int32"),
            )
        self._known = [torch.from_numpy(numbers.copy()).to(device) for numbers in known]
        self._come = torch.zeros(1, dtype=torch.int32).pin_memory() if plan.waits else None

    def ready(self, out: Array, inp: Array) -> Ready:
        assert isinstance(out, torch.Tensor) and isinstance(inp, torch.Tensor)
        outs = self._of(self._memory.addresses(out))
        at = RowPeers(rank=self._rank, outs=outs, scratches=self._scratches, rows=inp.data_ptr())
        kernel = self._combine(at) if self._plan.combines else self._dispatch(at)
        start = functools.partial(self._start, kernel, (out, inp))  # the buffers must outlive the call
        return start if self._come is None else functools.partial(self._counted, start)

    def _dispatch(self, at: RowPeers) -> Enqueue:
        shape, plan = self._shape, self._plan
        weights = at.rows + shape.tokens * shape.row_bytes
        experts = weights + shape.tokens * shape.top_k * _NUMBER_BYTES
        if not plan.told:
            weights, experts = 0, self._known[0].data_ptr()
        argument = routed.dispatch_argument(shape, at, experts=experts, weights=weights)
        name = "dispatch_slots" if plan.slots else "dispatch"
        return routed.launch(self._index, name, argument, blocks=self._plan.ctas, ranks=shape.ranks)

    def _combine(self, at: RowPeers) -> Enqueue:
        shape, plan = self._shape, self._plan
        places, weights, senders = (numbers.data_ptr() for numbers in self._known)
        argument = routed.combine_argument(
            shape, at, places=places, weights=weights if plan.by_expert else 0, senders=senders, slots=plan.slots,
            blocks=plan.ctas,
        )  # fmt: skip
        return routed.launch(self._index, f"combine_{plan.dtype}", argument, blocks=self._plan.ctas, ranks=shape.ranks)

    def _counted(self, start: Ready) -> Work | None:
        """Make a call, and let the host wait until it knows how many rows have come."""
        if (work := start()) is not None:
            work.wait()
        assert self._come is not None
        come = self._scratch[scratch.rows_come() :][:_NUMBER_BYTES].view(torch.int32)
        self._come.copy_(come, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return None


def shape_of(plan: RowPutPlan) -> RowShape:
    """Return what the kernels call the shape of a plan."""
    ranks, tokens, top_k = plan.experts.shape
    return RowShape(ranks=ranks, tokens=tokens, top_k=top_k, per_rank=plan.per_rank, row_bytes=plan.row_bytes,
                    by_expert=plan.by_expert)  # fmt: skip
