"""Proof that a schedule sends what its formula says: every call is counted, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from commbench import payloads
from commbench.communicators.base import CommLike
from commbench.communicators.communicator import Communicator
from commbench.communicators.prepared import Pending
from commbench.communicators.wrapper import CommWrapper
from commbench.errors import CommbenchError
from moe_ref.exchange import gather_counts
from moe_ref.routing import Routing
from moe_ref.schedules.base import COUNT_BYTES, Layer, Phase, Schedule, Shape, TrafficEntry, merged


class Mismatch(CommbenchError):
    """A schedule sent something else than its formula says."""

    exit_code = 1


class TrafficLog:
    """All that has been sent, in order. phase: of what comes next."""

    def __init__(self) -> None:
        self.phase: Phase = "forward"
        self.messages: list[TrafficEntry] = []

    def add(self, collective: str, group: str, nbytes: int) -> None:
        """Note a call."""
        self.messages.append(TrafficEntry(self.phase, collective, group, 1, nbytes))


class CountingComm(CommWrapper):
    """A communicator that notes each call, and makes it."""

    def __init__(self, comm: CommLike, group: str, log: TrafficLog) -> None:
        """group: the name in the log."""
        super().__init__(comm)
        self._group, self._log = group, log

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]:
        self._log.add("exchange_counts", self._group, COUNT_BYTES * len(sent))
        return super().exchange_counts(sent)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, collective: str) -> Tensor:
        """Make a tensor in the memory of the communicator's choice, which is no call."""
        return cast(Communicator, self.comm).empty(shape, dtype, collective=collective)

    def _call(self, name: str, out: Tensor, inp: Tensor | None, *, async_op: bool, **arguments: Any) -> Pending | None:
        counted = out if inp is None or name == "all_gather" else inp
        self._log.add(name, self._group, counted.nbytes)
        return super()._call(name, out, inp, async_op=async_op, **arguments)


class TrafficReport(NamedTuple):
    """A pass as it was counted, and as the formula has it.

    sent: what was counted, in order. expected: what the formula says, merged. shape: what it was given.
    """

    sent: list[TrafficEntry]
    expected: list[TrafficEntry]
    shape: Shape

    def raise_if_different(self) -> None:
        """Raise `Mismatch` with what was sent and not expected, and the other way round."""
        found = merged(self.sent)
        if found != self.expected:
            extra = [str(message) for message in found if message not in self.expected]
            missing = [str(message) for message in self.expected if message not in found]
            raise Mismatch(f"sent and not in the formula: {'; '.join(extra) or 'nothing'}",
                           hint=f"in the formula and not sent: {'; '.join(missing) or 'nothing'}")  # fmt: skip


def shape_of(layer: Layer, x: Tensor, routing: Routing) -> Shape:
    """Return the shape of a pass that has been made. Collective for dropless: the counts of all ranks."""
    config, weights = layer.gate.config, layer.experts
    itemsize = layer.cast_to_send(x.new_empty(0)).element_size()
    rows_WE = None
    if routing.capacity is None:
        rows_WE = tuple(map(tuple, gather_counts(layer.comm, routing).tolist()))
    return Shape(
        T=x.numel() // x.shape[-1],
        D=x.shape[-1],
        E=config.experts,
        K=config.top_k,
        C=routing.capacity,
        W=layer.comm.size,
        tp=1 if layer.tp is None else layer.tp.size,
        itemsize=itemsize,
        token_itemsize=x.element_size(),
        rank=layer.comm.rank,
        rows_WE=rows_WE,
        weight_bytes=sum(p.numel() for p in weights.parameters()) * itemsize,
        gate_bytes=sum(p.nbytes for p in layer.gate.parameters()),
        agreements=layer.agreements(),
        payload=payloads.get(layer.payload),
        payload_back=payloads.get(layer.payload_back),
        input_grad=x.requires_grad,
        gate_itemsize=routing.weights_TK.element_size(),
        hops=_settled(layer, x).hops(layer, routing),
    )


@contextmanager
def counting(layer: Layer) -> Iterator[TrafficLog]:
    """Note all calls of the layer's communicators within the context. Set `TrafficLog.phase` before going back."""
    log, kept = TrafficLog(), layer.comms
    layer.comms = {name: comm and CountingComm(comm, name, log) for name, comm in kept.items()}
    try:
        yield log
    finally:
        layer.comms = kept


def report(layer: Layer, log: TrafficLog, x: Tensor, routing: Routing) -> TrafficReport:
    """Compare what one pass sent with what the formula says for its shape. Collective, as `shape_of` is."""
    shape = shape_of(layer, x, routing)
    return TrafficReport(log.messages, _settled(layer, x).traffic(shape), shape)


def _settled(layer: Layer, x: Tensor) -> Schedule:
    return layer.schedule.settled(layer, x.reshape(-1, x.shape[-1]))


def verify(
    layer: Layer, x: Tensor, padding: Tensor | None = None, *, generator: torch.Generator | None = None
) -> TrafficReport:
    """Make one pass forward and one backward, and count. Collective; `.grad` of nothing is touched.

    Compare on every rank: `verify(layer, x).raise_if_different()`.
    """
    with counting(layer) as log:
        y, routing = layer(x, padding, generator=generator)
        log.phase = "backward"
        wanted = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
        torch.autograd.grad(y.sum(), wanted, allow_unused=True)
    return report(layer, log, x, routing)
