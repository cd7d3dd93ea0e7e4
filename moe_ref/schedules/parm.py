"""Parm's two schedules (Pan et al., "Parm: Efficient Training of Large Sparsely-Activated Models with Dedicated
Schedules", arXiv 2407.00599): tokens that t ranks hold alike are divided among them before the gate, or after it.

Both then exchange among all W = G t ranks at once: a row goes to each rank of its expert's group, whose summands come
back as t rows and are added where the row came from. So no group sums, and none gathers what has arrived from others;
but each row crosses the links between groups t times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from commbench.communicators.base import CommLike
from commbench.communicators.differentiation import differentiated_once
from moe_ref.experts import by_expert, by_source
from moe_ref.gate import Gate
from moe_ref.profiling import labelled
from moe_ref.routing import Routing
from moe_ref.schedules.base import Layer, Shape
from moe_ref.schedules.planned import (
    CollectiveCall,
    PlannedSchedule,
    Stage,
    both_passes,
    call_of_chunk,
    capacity_of,
    check_chunks,
    chunk_slices,
    slots_per_rank,
)
from moe_ref.schedules.tp_exchange import AsyncCall, TPExchange, apply_experts, by_group, by_sender, by_tp_rank


@dataclass(frozen=True, slots=True)
class ParmS1(PlannedSchedule):
    """Each rank of a group takes 1 / t of the tokens, gates those only, and the group gathers what comes out.

    The gate is t times cheaper, but slots are counted slice by slice: where capacity binds, other tokens are dropped
    than without slices. Where t does not divide T the last slices are padded, and padding counts in their capacity.
    The routing is that of this rank's slice; a loss in it is the slice's, and counts 1 / t, so that its gradient is
    that of the mean over slices. The gate's gradient is summed over the group, as that of tokens is gathered: both are
    the same on all its ranks, as with other schedules. Ranks may have generators of different states.
    """

    name: ClassVar[str] = "parm_s1"

    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        tp = layer.tp
        assert tp is not None
        with labelled("moe::gate"):
            x_ND: Tensor = _Slice.apply(x_TD, tp)  # type: ignore[no-untyped-call]
            gate = _summing(layer.gate, tp)
        routing = layer.route(x_ND, _padding(x_TD, padding_T, tp), generator, gate)
        with labelled("moe::dispatch"):
            dispatcher = layer.dispatcher(routing)
            buffer_ECD = dispatcher.dispatch(layer.cast_to_send(x_ND))
        out_ECD = apply_experts(layer, self.exchange(layer), buffer_ECD)
        with labelled("moe::combine"):
            y_TD: Tensor = _Whole.apply(dispatcher.combine(out_ECD), tp, len(x_TD))  # type: ignore[no-untyped-call]
        return y_TD, replace(routing, losses={name: _part(loss, tp.size) for name, loss in routing.losses.items()})

    def exchange(self, layer: Layer) -> TPExchange:
        assert layer.tp is not None
        return ParmExchange(layer.comm, layer.tp.size)

    def stages(self, shape: Shape) -> list[Stage]:
        """Plan the calls; C of the shape is that of a slice."""
        exchange = CollectiveCall(
            "exchange", "all_to_all", "comm", shape.tp * shape.E * capacity_of(shape) * shape.row_bytes
        )
        rows = -(-shape.T // shape.tp) * shape.tp * shape.D
        found = both_passes(shape, [exchange], [exchange])
        found.insert(2, Stage("forward", (CollectiveCall("gather", "all_gather", "tp", rows * shape.itemsize),)))
        if shape.input_grad:
            found.append(
                Stage("backward", (CollectiveCall("gather", "all_gather", "tp", rows * shape.token_itemsize),))
            )
        return [*found, Stage("backward", (CollectiveCall("gate", "all_reduce", "tp", shape.gate_bytes),))]


@dataclass(frozen=True, slots=True)
class ParmS2(PlannedSchedule):
    """All ranks gate all tokens, each keeps 1 / t of the slots of each expert, and the group gathers the buffer.

    Slots are those of all tokens, so the result is that of `tensor_parallel`. What comes back goes in `chunks` along
    capacity, one gathered beside the exchange of the next, in both passes. Parm's simultaneous all-to-all and
    all-gather has one piece for each peer instead.
    """

    name: ClassVar[str] = "parm_s2"
    chunks: int = 4

    def __post_init__(self) -> None:
        check_chunks(self.chunks)

    def exchange(self, layer: Layer) -> TPExchange:
        assert layer.tp is not None
        return ParmSlotsExchange(layer.comm, layer.tp, self.chunks)

    def stages(self, shape: Shape) -> list[Stage]:
        mine = slots_per_rank(capacity_of(shape), shape.tp)
        of_slots = shape.tp * shape.E * shape.row_bytes
        there = CollectiveCall("exchange", "all_to_all", "comm", mine * of_slots)
        back: list[CollectiveCall] = []
        cuts = chunk_slices(mine, self.chunks)
        for i in range(len(cuts) + 1):
            before = call_of_chunk("exchange", i - 1) + call_of_chunk("gather", i - 3)
            if i < len(cuts):
                nbytes = (cuts[i].stop - cuts[i].start) * of_slots
                back.append(CollectiveCall(f"exchange-{i}", "all_to_all", "comm", nbytes, before))
            if i:
                nbytes = (cuts[i - 1].stop - cuts[i - 1].start) * of_slots
                back.append(CollectiveCall(f"gather-{i - 1}", "all_gather", "tp", nbytes, before))
        return both_passes(shape, [there], back)


class ParmExchange:
    """Sends rows that one rank alone has to all ranks of a group, and adds up what they make of them."""

    def __init__(self, comm: CommLike, tp_size: int) -> None:
        self.comm, self.tp_size, self.groups = comm, tp_size, comm.size // tp_size

    def dispatch(self, buffer_ECD: Tensor) -> Tensor:
        return by_expert(
            AsyncCall(self.comm, "all_to_all", self._to_tp_ranks(by_group(buffer_ECD, self.groups))).wait()
        )

    def combine(self, rows_END: Tensor) -> Tensor:
        return self._summed(AsyncCall(self.comm, "all_to_all", by_source(rows_END, self.comm.size))).flatten(0, 1)

    def _to_tp_ranks(self, blocks_GECD: Tensor) -> Tensor:
        """Repeat blocks, one copy for each rank: [W, E, C, D]."""
        return blocks_GECD[:, None].expand(-1, self.tp_size, -1, -1, -1).flatten(0, 1)

    def _summed(self, back: AsyncCall) -> Tensor:
        return by_sender(back.wait(), self.groups).sum(1)


class ParmSlotsExchange(ParmExchange):
    """Does the same with a buffer that all of a group have: a rank keeps a run of slots, and they gather the sums."""

    def __init__(self, comm: CommLike, tp: CommLike, chunks: int) -> None:
        super().__init__(comm, tp.size)
        self.tp, self.chunks = tp, chunks

    def dispatch(self, buffer_ECD: Tensor) -> Tensor:
        slots_per_rank(buffer_ECD.shape[1], self.tp_size)
        mine_GECD = by_tp_rank(by_group(buffer_ECD, self.groups), self.tp_size)[:, :, self.tp.rank]
        return by_expert(AsyncCall(self.comm, "all_to_all", self._to_tp_ranks(mine_GECD)).wait())

    def combine(self, rows_END: Tensor) -> Tensor:
        here, rows, width = rows_END.shape
        rows_EWCD = rows_END.view(here, self.comm.size, rows // self.comm.size, width)
        mine = rows_EWCD.shape[2]
        out_GEPCD = rows_END.new_empty(self.groups, here, self.tp_size, mine, width)

        def exchange(cut: slice) -> AsyncCall:
            return AsyncCall(self.comm, "all_to_all", rows_EWCD[:, :, cut].transpose(0, 1))

        def store(gather: AsyncCall, cut: slice) -> None:
            gathered_PGECD = by_sender(gather.wait(), self.tp_size)
            out_GEPCD[:, :, :, cut] = gathered_PGECD.permute(1, 2, 0, 3, 4)

        cuts, gathers = chunk_slices(mine, self.chunks), list[AsyncCall]()
        flying = exchange(cuts[0])
        for i in range(len(cuts)):
            back = flying
            back.wait()
            if i + 1 < len(cuts):
                flying = exchange(cuts[i + 1])
            gathers.append(AsyncCall(self.tp, "all_gather", self._summed(back)))
            if i:
                store(gathers[i - 1], cuts[i - 1])
        store(gathers[-1], cuts[-1])
        return out_GEPCD.flatten(2, 3).flatten(0, 1)


class _Slice(torch.autograd.Function):
    """Takes this rank's slice of tokens that all of `tp` have, behind the last one rows of 0; backward gathers."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, tp: CommLike) -> Tensor:
        ctx.tp, ctx.tokens = tp, len(x_TD)
        return _cut(x_TD.detach(), tp)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Whole.apply(gradients[0], ctx.tp, ctx.tokens), None  # type: ignore[no-untyped-call]


class _Whole(torch.autograd.Function):
    """Gathers all T rows of the slices of `tp`; backward each rank has its slice of a gradient that all have."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, tp: CommLike, tokens: int) -> Tensor:
        ctx.tp = tp
        return AsyncCall(tp, "all_gather", y_ND.detach()).wait()[:tokens]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Slice.apply(gradients[0], ctx.tp), None, None  # type: ignore[no-untyped-call]


class _Summing(torch.autograd.Function):
    """Passes on parameters that ranks use on different tokens; backward sums their gradients by one all_reduce."""

    @staticmethod
    def forward(ctx: Any, tp: CommLike, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.tp = tp
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    @differentiated_once("a schedule that cuts tokens over tp", "schedule=sequential can be")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        ctx.tp.all_reduce(flat)
        parts = flat.split_with_sizes([gradient.numel() for gradient in gradients])
        return None, *(part.view_as(of).to(of.dtype) for part, of in zip(parts, gradients, strict=True))


def _summing(gate: Gate, tp: CommLike) -> Callable[..., Any]:
    """Return the gate, with gradients of its parameters that are sums over `tp`."""
    names, parameters = zip(*gate.named_parameters(), strict=True)
    shared = dict(zip(names, _Summing.apply(tp, *parameters), strict=True))  # type: ignore[no-untyped-call]

    def gated(*given: Any, **keywords: Any) -> Any:
        return functional_call(gate, shared, given, keywords)

    return gated


def _cut(x_TD: Tensor, tp: CommLike) -> Tensor:
    length = -(-len(x_TD) // tp.size)
    mine_ND = x_TD[tp.rank * length : (tp.rank + 1) * length]
    return functional.pad(mine_ND, (0, 0, 0, length - len(mine_ND))) if len(mine_ND) < length else mine_ND


def _padding(x_TD: Tensor, padding_T: Tensor | None, tp: CommLike) -> Tensor | None:
    """Return the padding mask of this rank's slice; None where no rank's has any."""
    if padding_T is None and len(x_TD) % tp.size == 0:
        return None
    mask_T = torch.zeros(len(x_TD), dtype=torch.bool, device=x_TD.device) if padding_T is None else padding_T
    length = -(-len(x_TD) // tp.size)
    return functional.pad(mask_T, (0, length * tp.size - len(mask_T)), value=True).view(tp.size, length)[tp.rank]


def _part(loss: Tensor, tp_size: int) -> Tensor:
    """Return the same number, with 1 / t of its gradient."""
    return loss.detach() * (1 - 1 / tp_size) + loss / tp_size
