"""A layer's pass whose tokens travel once to each rank, or node, that has experts of theirs. Dropless only.

    rank  x [T, D] ── Gate ── routed.dispatch ──> rows by expert, counts ── Experts ── routed.combine ──> y [T, D]

`commbench.communicators.routed` says which row goes where, as `comm.dispatch` of a program does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from commbench.communicators import routed
from commbench.communicators.communicator import Communicator
from commbench.communicators.routed_agreement import ALL_GATHER, WAYS, unsupported
from commbench.communicators.routed_choice import PROFILE, LayerAsk, RoutedChoice
from commbench.communicators.wrapper import bare
from commbench.errors import UsageError, unknown
from commbench.layout import Layout
from commbench.payloads import NONE
from moe_ref.capacity import Capacity
from moe_ref.profiling import labelled
from moe_ref.routing import Routing
from moe_ref.schedules.base import (
    COUNT_BYTES,
    HasPayload,
    Layer,
    Phase,
    Schedule,
    Shape,
    TrafficEntry,
    agreement_traffic,
    merged,
)
from moe_ref.schedules.chunked import Sequential

PER_CHOICE = "per_choice"  # of the other schedules
EXCHANGES = (PER_CHOICE, *(name for name in WAYS if name != PER_CHOICE), PROFILE)


@dataclass(frozen=True, slots=True)
class Deduplicated(Schedule):
    """The schedule `sequential` with another exchange: `per_rank`, `per_node` or `all_gather`.

    nodes: of the layer's ranks, in equal blocks.
    """

    name: ClassVar[str] = "sequential"
    payloads: ClassVar[bool] = True
    exchange: str
    nodes: int = 1

    def check(self, layer: Layer) -> None:
        Schedule.check(self, layer)
        self.check_model(layer.gate.config.capacity, layer.gate.config.experts, layer.comm.size, layer)
        if layer.kept_buffers is not None:
            raise UsageError(f"exchange={self.exchange} with keep_buffers: rows differ in number from pass to pass",
                             hint="keep_buffers=False, or exchange=per_choice")  # fmt: skip

    def check_model(self, capacity: Capacity, experts: int, ranks: int, payloads: HasPayload) -> None:
        """Raise `UsageError` where a layer of these settings cannot have the exchange."""
        said = f"exchange={self.exchange}"
        if not capacity.dropless:
            raise UsageError(f"{said} with capacity {capacity.rule}: slots of experts are sent whole",
                             hint="dropless, or exchange=per_choice")  # fmt: skip
        if experts < ranks:
            raise UsageError(f"{said} for {experts} experts on {ranks} ranks: experts are cut into shards",
                             hint="an expert or more on each rank, or exchange=per_choice")  # fmt: skip
        if ranks > 1 and self.exchange != PROFILE and (reason := unsupported(self.exchange, self._layout(ranks))):
            raise UsageError(f"{said}: {reason}", hint="exchange=per_rank")
        if self.exchange == ALL_GATHER and {payloads.payload, payloads.payload_back} != {NONE}:
            sent = f"payload={payloads.payload}, payload_back={payloads.payload_back}"
            raise UsageError(f"{said} sends tokens as they are, and {sent}",
                             hint="payload=none, or exchange=per_rank")  # fmt: skip

    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        routing = layer.route(x_TD, padding_T, generator)
        comm, payload, back = layer.comm, layer.payload, layer.payload_back
        with labelled("moe::dispatch"):
            rows, counts_E, handle = routed.dispatch(
                comm, layer.cast_to_send(x_TD), _choices(routing), routing.weights_TK, routing.experts,
                algorithm=self.exchange, layout=self._layout(comm.size), check=False, payload=payload,
                payload_back=back,
            )  # fmt: skip
        made = layer.apply_experts(rows, counts_E)
        with labelled("moe::combine"):
            return routed.combine(comm, made, handle, payload=payload, payload_back=back), routing

    def traffic(self, shape: Shape) -> list[TrafficEntry]:
        found = agreement_traffic(shape)
        hops = shape.hops or tuple(self._expected(shape))
        if self.exchange == ALL_GATHER:
            found += _all_gather_traffic(shape, hops[0][0])
        else:
            for hop in hops:
                found += _hop_traffic(shape, *hop)
        return merged(found)

    def hops(self, layer: Layer, routing: Routing) -> tuple[tuple[int, int], ...]:
        """Count rows by the choices of all ranks, without the planner. Of all_gather: T of the rank that has most."""
        experts_WTK = _all_choices(layer, routing)
        ranks, me = layer.comm.size, layer.comm.rank
        if self.exchange == ALL_GATHER:
            return ((experts_WTK.shape[1], experts_WTK.shape[1]),)
        here = routing.experts // ranks
        wants_WTW = np.stack([(experts_WTK // here == rank).any(axis=2) for rank in range(ranks)], axis=2)
        rows_WW = wants_WTW.sum(axis=1)
        if self.exchange == "per_rank":
            return ((int(rows_WW[me].sum() - rows_WW[me, me]), int(rows_WW[:, me].sum() - rows_WW[me, me])),)
        layout = self._layout(ranks)
        node, m = layout.node(me), layout.ranks_per_node
        to_node_WN = wants_WTW.reshape(ranks, -1, layout.nodes, m).any(axis=3).sum(axis=1)
        rails, mates = layout.rails(), [rank for rank in layout.node_groups()[node] if rank != me]
        rail = rails[layout.local(me)]
        between = (
            int(to_node_WN[me].sum() - to_node_WN[me, node]),
            int(sum(to_node_WN[rank, node] for rank in rail if rank != me)),
        )
        inside = (
            int(rows_WW[np.ix_(rail, mates)].sum()),
            int(sum(rows_WW[rails[layout.local(mate)], me].sum() for mate in mates)),
        )
        return between, inside

    def _layout(self, ranks: int) -> Layout:
        return Layout(self.nodes, ranks // self.nodes)

    def _expected(self, shape: Shape) -> Iterator[tuple[int, int]]:
        """Rows of each hop where all experts are equally likely, rounded up."""
        if self.exchange == ALL_GATHER:
            yield shape.T, shape.T
            return
        layout = self._layout(shape.W)
        rank, node = (
            1 - math.comb(shape.E - shape.E // groups, shape.K) / math.comb(shape.E, shape.K)
            for groups in (shape.W, layout.nodes)
        )
        if self.exchange == "per_node":
            between = math.ceil(shape.T * (layout.nodes - 1) * node)
            yield between, between
        peers = layout.nodes * (layout.ranks_per_node - 1) if self.exchange == "per_node" else shape.W - 1
        yield (math.ceil(shape.T * peers * rank),) * 2


@dataclass(frozen=True, slots=True)
class ByProfile(Schedule):
    """The schedule `sequential`, with the exchange that the communicator's profile has for the layer, and T tokens.

    For dropless layers whose ranks all bring the same T, and have an expert or more each. nodes: as of `Deduplicated`.
    """

    name: ClassVar[str] = "sequential"
    payloads: ClassVar[bool] = True
    nodes: int = 1

    def check(self, layer: Layer) -> None:
        Schedule.check(self, layer)
        if not layer.equal_tokens:
            raise UsageError("exchange=profile without equal_tokens: ranks would look up different sizes",
                             hint="equal_tokens=True, or another exchange")  # fmt: skip
        Deduplicated(PROFILE, self.nodes).check(layer)

    def settled(self, layer: Layer, x_TD: Tensor) -> Schedule:
        comm = bare(layer.comm)
        if not isinstance(comm, Communicator):
            return Sequential()
        config, row = layer.gate.config, layer.cast_to_send(x_TD[:0])
        size = x_TD.numel() * row.element_size()
        ask = LayerAsk(top_k=config.top_k, experts=config.experts, size_bytes=size, payload=layer.payload)
        return self.taking(comm.choose_dispatch(ask, row.dtype, layer.payload_back))

    def taking(self, choice: RoutedChoice) -> Schedule:
        """Return the schedule of a choice."""
        return Sequential() if choice.algorithm == PER_CHOICE else Deduplicated(choice.algorithm, self.nodes)

    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        return self.settled(layer, x_TD).forward(layer, x_TD, padding_T, generator)

    def traffic(self, shape: Shape) -> list[TrafficEntry]:
        raise UsageError("exchange=profile: what is sent is up to the communicator",
                         hint="Schedule.settled of the layer and its tokens")  # fmt: skip

    def __str__(self) -> str:
        return f"{self.name} exchange={PROFILE} nodes={self.nodes}"


def with_exchange(schedule: Schedule, exchange: str, nodes: int) -> Schedule:
    """Return the schedule with this exchange. Raises `UsageError` where it cannot have it."""
    if exchange not in EXCHANGES:
        raise unknown("exchange", exchange, EXCHANGES)
    if exchange == PER_CHOICE or isinstance(schedule, Deduplicated | ByProfile):
        return schedule
    if not isinstance(schedule, Sequential) or schedule.r != 1:
        raise UsageError(f"exchange={exchange} with schedule {schedule}",
                         hint="schedule sequential with r=1, or exchange=per_choice")  # fmt: skip
    return ByProfile(nodes) if exchange == PROFILE else Deduplicated(exchange, nodes)


def _choices(routing: Routing) -> Tensor:
    """Return the experts of each token, -1 for choices without a slot."""
    return torch.where(routing.slots_TK < 0, -1, routing.experts_TK)


def _all_choices(layer: Layer, routing: Routing) -> np.ndarray:
    """Return the choices of all ranks [W, T of the rank that has most, K]. Collective."""
    comm, mine = layer.comm, _choices(routing)
    most = torch.tensor([len(mine)], dtype=torch.int64, device=mine.device)
    comm.all_reduce(most, op="max")
    padded = torch.nn.functional.pad(mine, (0, 0, 0, int(most) - len(mine)), value=-1).contiguous()
    found = padded.new_empty(comm.size, *padded.shape)
    comm.all_gather(found, padded)
    return found.cpu().numpy()


def _hop_traffic(shape: Shape, sent: int, received: int) -> Iterator[TrafficEntry]:
    """Counts, what is told of rows, rows and weights there; rows back; and gradients of all that has one."""
    weights = shape.K * shape.gate_itemsize
    yield TrafficEntry("forward", "all_gather", "comm", 1, COUNT_BYTES * shape.W * shape.W)
    yield TrafficEntry("forward", "all_to_allv", "comm", 1, sent * routed.told_bytes(shape.K))
    passes: list[tuple[Phase, int, int]] = [
        ("forward", 1, sent * shape.row_bytes),
        ("forward", 1, sent * weights),
        ("forward", 1, received * shape.row_bytes),
        ("backward", 1, sent * shape.gradient_row_bytes),
        ("backward", 1, received * weights),
        ("backward", int(shape.input_grad), received * shape.gradient_row_bytes),
    ]
    for phase, calls, nbytes in passes:
        yield TrafficEntry(phase, "all_to_allv", "comm", calls, nbytes)


def _all_gather_traffic(shape: Shape, most: int) -> Iterator[TrafficEntry]:
    rows, weights = shape.W * most * shape.row_bytes, shape.W * most * shape.K * shape.gate_itemsize
    for nbytes in (COUNT_BYTES * shape.W, COUNT_BYTES * shape.W * most * shape.K, rows, weights):
        yield TrafficEntry("forward", "all_gather", "comm", 1, nbytes)
    yield TrafficEntry("forward", "reduce_scatter", "comm", 1, rows)
    yield TrafficEntry("backward", "all_gather", "comm", 1, rows)
    yield TrafficEntry("backward", "reduce_scatter", "comm", 1, weights)
    yield TrafficEntry("backward", "reduce_scatter", "comm", int(shape.input_grad), rows)
