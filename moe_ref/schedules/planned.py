"""Plans of tensor-parallel schedules: which calls they issue, and what is in flight beside what.

A plan has one `Stage` for each way through a `TPExchange`. From it follow a schedule's traffic, and by a cost
model how long it takes (predict.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref.profiling import labelled
from moe_ref.routing import Routing
from moe_ref.schedules.base import Layer, Phase, Schedule, Shape, TrafficEntry, agreement_traffic, merged
from moe_ref.schedules.tp_exchange import TPExchange, apply_experts


class CollectiveCall(NamedTuple):
    """One collective of dispatch or combine, of `nbytes` as `TrafficEntry` has it.

    It is issued when those named in `after` are over.
    """

    name: str
    collective: str
    group: str
    nbytes: int
    after: tuple[str, ...] = ()


class Stage(NamedTuple):
    """Calls between which nothing is computed, in the order in which they are issued."""

    phase: Phase
    calls: tuple[CollectiveCall, ...]


@dataclass(frozen=True, slots=True)
class PlannedSchedule(Schedule):
    """A schedule of tensor-parallel ranks that says what is in flight beside what, from which its traffic follows."""

    @abstractmethod
    def stages(self, shape: Shape) -> list[Stage]:
        """Plan one pass forward and one backward, without the numbers that ranks agree on first."""

    @abstractmethod
    def exchange(self, layer: Layer) -> TPExchange:
        """Make what takes the dispatch buffer of this layer to the experts and back."""

    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        routing = layer.route(x_TD, padding_T, generator)
        with labelled("moe::dispatch"):
            dispatcher = layer.dispatcher(routing)
            buffer_ECD = dispatcher.dispatch(layer.cast_to_send(x_TD))
        out_ECD = apply_experts(layer, self.exchange(layer), buffer_ECD)
        with labelled("moe::combine"):
            return dispatcher.combine(out_ECD), routing

    def traffic(self, shape: Shape) -> list[TrafficEntry]:
        calls = [(stage.phase, call) for stage in self.stages(shape) for call in stage.calls]
        return merged(
            [
                *agreement_traffic(shape),
                *(TrafficEntry(phase, c.collective, c.group, 1, c.nbytes) for phase, c in calls),
            ]
        )

    def check(self, layer: Layer) -> None:
        self.check_payload(layer)
        if layer.tp is None:
            raise UsageError(f"schedule {self.name} of a layer without a tp communicator",
                             hint="DistributedMoE(.., tp=, ep=), with sharded experts")  # fmt: skip
        if layer.gate.config.capacity.dropless:
            raise UsageError(f"schedule {self.name} of a dropless layer: ranks of a group divide equal blocks",
                             hint="a capacity rule that has slots")  # fmt: skip


def both_passes(shape: Shape, there: Sequence[CollectiveCall], back: Sequence[CollectiveCall]) -> list[Stage]:
    """Plan both passes, of the calls of dispatch and combine: each is the other's backward pass."""
    dispatch, combine = tuple(there), tuple(back)
    found = [Stage("forward", dispatch), Stage("forward", combine), Stage("backward", dispatch)]
    return [*found, Stage("backward", combine)] if shape.input_grad else found


def call_of_chunk(kind: str, chunk: int) -> tuple[str, ...]:
    """Name the call of a chunk, where there is such a chunk."""
    return (f"{kind}-{chunk}",) if chunk >= 0 else ()


def capacity_of(shape: Shape) -> int:
    """Return C of the shape. Raises `UsageError` for a dropless one, which has none."""
    if shape.C is None:
        raise UsageError("a shape without capacity: ranks of a group divide equal blocks", hint="C of the layer")
    return shape.C


def chunk_slices(length: int, chunks: int) -> list[slice]:
    """Cut into `chunks` runs of nearly equal length, or fewer, as none is empty; but of nothing there is one."""
    chunks = max(1, min(chunks, length))
    return [slice(*edges) for edges in pairwise(length * chunk // chunks for chunk in range(chunks + 1))]


def slots_per_rank(capacity: int, tp_size: int) -> int:
    """Count the slots of each expert that one rank of a group carries. Raises `UsageError` where they do not divide."""
    if capacity % tp_size:
        raise UsageError(f"capacity C={capacity} does not divide among the {tp_size} ranks of a group",
                         hint=f"Capacity(.., multiple_of={tp_size})")  # fmt: skip
    return capacity // tp_size


def check_chunks(chunks: int) -> None:
    """Raise `UsageError` for a number below 1."""
    if chunks < 1:
        raise UsageError(f"chunks={chunks} is below 1", hint="1 or more")
