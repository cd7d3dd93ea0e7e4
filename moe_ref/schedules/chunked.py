"""A layer's forward pass with what is sent in chunks, and its traffic. Three schedules differ in how they cut."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref import exchange, sharding
from moe_ref.profiling import labelled
from moe_ref.routing import Routing
from moe_ref.schedules.base import COUNT_BYTES, Layer, Schedule, Shape, TrafficEntry, agreement_traffic, merged
from moe_ref.schedules.overlap import start


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """How a layer cuts what it sends.

    r: as in `moe_ref.sharding`. chunks: cuts by rows of each expert. groups: cuts by experts of a rank.
    """

    r: int = 1
    chunks: int = 1
    groups: int = 1

    def check(self, layer: Layer) -> None:
        """Raise `UsageError` for what this layer cannot do."""
        pieces, here = layer.experts.pieces, layer.experts.experts
        if self.r not in exchange.allowed_r(pieces):
            raise UsageError(f"r={self.r} for experts in {pieces} shards",
                             hint=f"one of {', '.join(map(str, exchange.allowed_r(pieces)))}")  # fmt: skip
        if self.chunks < 1:
            raise UsageError(f"chunks={self.chunks} is below 1", hint="1 or more")
        if not 1 <= self.groups <= here:
            raise UsageError(f"groups={self.groups} of {here} experts of a rank", hint=f"1 <= groups <= {here}")
        if self.r == 0 and self.chunks > 1:
            raise UsageError(f"r=0 with chunks={self.chunks}: no token is sent", hint="chunks=1, or another r")


@dataclass(frozen=True, slots=True)
class Chunked(Schedule):
    """A schedule whose pass is that of its cuts."""

    payloads: ClassVar[bool] = True

    @property
    @abstractmethod
    def cuts(self) -> Cuts:
        """The cuts of what is sent."""

    def check(self, layer: Layer) -> None:
        Schedule.check(self, layer)
        self.cuts.check(layer)

    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        return _forward(layer, self.cuts, x_TD, padding_T, generator)

    def traffic(self, shape: Shape) -> list[TrafficEntry]:
        return _traffic(shape, self.cuts)


@dataclass(frozen=True, slots=True)
class Sequential(Chunked):
    """Makes one exchange, applies the experts, makes one exchange back: nothing overlaps.

    Other schedules are measured against it.

    r: 1, or 0 for no exchange of tokens, but all parameters on all ranks. Where E < W, any divisor of W / E too: on
    how many ranks a whole expert is in a step (`moe_ref.sharding`).
    """

    name: ClassVar[str] = "sequential"
    r: int = 1

    @property
    def cuts(self) -> Cuts:
        return Cuts(r=self.r)


@dataclass(frozen=True, slots=True)
class Pipelined(Chunked):
    """Cuts capacity into chunks: the exchange of one runs beside the experts of another (Tutel, arXiv 2206.03382, 3.3).

    chunks: d. Chunk i has rows floor(i C / d) .. floor((i + 1) C / d) of every expert, and of a dropless layer the
    same chunk of what each rank has for it. r: as in `Sequential`, but not 0.

    Experts' products have d times fewer rows, so they take longer in all; what is won is hidden communication.
    """

    name: ClassVar[str] = "pipelined"
    chunks: int = 2
    r: int = 1

    @property
    def cuts(self) -> Cuts:
        return Cuts(r=self.r, chunks=self.chunks)


@dataclass(frozen=True, slots=True)
class ExpertGroups(Chunked):
    """Cuts a rank's experts into groups: one is exchanged beside products of another (EPS-MoE, arXiv 2410.12247).

    groups: G, at most E / W. Group i has experts floor(i E_g / G) .. floor((i + 1) E_g / G) of each rank. Weights are
    read once and each expert has all of its rows in one product, where `Pipelined` cuts them. It needs several experts
    on a rank.
    """

    name: ClassVar[str] = "expert_groups"
    groups: int = 2

    @property
    def cuts(self) -> Cuts:
        return Cuts(groups=self.groups)


def _forward(
    layer: Layer, cuts: Cuts, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Routing]:
    """Start all exchanges, then compute each chunk when it is there, and start its way back.

    So experts work on chunk i beside the exchanges of the chunks after it and the ways back of those before it; and
    backward the same in the reverse order (overlap.py). A single chunk has nothing to run beside, so it does not try.
    """
    routing = layer.route(x_TD, padding_T, generator)
    with labelled("moe::dispatch"):
        dispatcher = layer.dispatcher(routing)
        buffer = dispatcher.dispatch(layer.cast_to_send(x_TD))
    weights: sharding.Weights | None = None
    if cuts.r == 0 or layer.experts.pieces > 1:
        with labelled("moe::experts"):
            weights = sharding.gather_weights(layer.experts, layer.comm, cuts.r, layer.send_dtype())
    if cuts.r == 0:
        counts_E = routing.counts_E if routing.capacity is None else None
        made = layer.apply_experts(buffer, counts_E, weights)
        with labelled("moe::combine"):
            return dispatcher.combine(made), routing
    if cuts.groups > 1 and weights is None:
        weights = dict(layer.experts.named_parameters())
    with labelled("moe::dispatch"):
        exchanged = exchange.create(layer.comm, routing, r=cuts.r, chunks=cuts.chunks, groups=cuts.groups)
        chunks: Sequence[exchange.ExchangeChunk] = exchanged.split(buffer)
        overlaps = len(chunks) > 1
        kept = layer.kept_buffers
        if kept is not None:
            kept.begin_pass()
        there = [
            start(layer.token_comm, chunk.collective, chunk.inp, async_op=overlaps, kept=kept, **chunk.dispatch_args)
            for chunk in chunks
        ]
    back = []
    for chunk, call in zip(chunks, there, strict=True):
        with labelled("moe::dispatch"):
            x = chunk.sort(call.wait())
        its = weights if weights is None or cuts.groups == 1 else sharding.select_experts(weights, chunk.experts)
        out = layer.apply_experts(x, chunk.counts_E, its)
        with labelled("moe::combine"):
            returned = chunk.unsort(out)
            back.append(
                start(layer.token_comm, chunk.collective, returned, async_op=overlaps, kept=kept, **chunk.combine_args)
            )
    with labelled("moe::combine"):
        return dispatcher.combine(exchanged.join([call.wait() for call in back])), routing


def _traffic(shape: Shape, cuts: Cuts) -> list[TrafficEntry]:
    """Return the messages of `_forward`, merged."""
    found, weights = agreement_traffic(shape), shape.weight_bytes
    if cuts.r == 0:
        gathered = shape.W * weights
        found += [TrafficEntry("forward", "all_gather", "comm", 1, gathered)]
        found += [TrafficEntry("backward", "reduce_scatter", "comm", 1, gathered)]
        return merged(found)
    copies = shape.pieces // cuts.r
    if copies > 1:
        found += [TrafficEntry("forward", "all_to_allv", "comm", 1, copies * weights)]
        found += [TrafficEntry("backward", "all_to_allv", "comm", 1, copies * weights)]
    if shape.C is None:
        found += [TrafficEntry("forward", "all_gather", "comm", 1, COUNT_BYTES * shape.W * shape.E)]
        name, sizes = "all_to_allv", list(_uneven(shape, cuts, copies))
    else:
        name, sizes = "all_to_all", list(_even(shape, cuts, copies))
    for sent, received in sizes:
        there, back = sent * shape.row_bytes, received * shape.row_bytes
        gradient = shape.gradient_row_bytes
        found += [TrafficEntry("forward", name, "comm", 1, there), TrafficEntry("forward", name, "comm", 1, back)]
        found += [TrafficEntry("backward", name, "comm", 1, sent * gradient)]  # of the gradient of what came back
        found += [TrafficEntry("backward", name, "comm", int(shape.input_grad), received * gradient)]
    return merged(found)


def _even(shape: Shape, cuts: Cuts, copies: int) -> Iterator[tuple[int, int]]:
    """Count rows sent and received in each chunk: the same number."""
    assert shape.C is not None
    here, rows = max(1, shape.E // shape.W), -(-shape.C // copies)
    for chunk in range(cuts.chunks):
        for group in range(cuts.groups):
            number = shape.W * _length(here, group, cuts.groups) * _length(rows, chunk, cuts.chunks)
            yield number, number


def _uneven(shape: Shape, cuts: Cuts, copies: int) -> Iterator[tuple[int, int]]:
    here, ranks = max(1, shape.E // shape.W), range(shape.W)
    for chunk in range(cuts.chunks):
        for group in range(cuts.groups):
            local = range(here * group // cuts.groups, here * (group + 1) // cuts.groups)

            def rows(source: int, target: int, chunk: int = chunk, local: range = local) -> int:
                first = target * here if shape.E >= shape.W else target * shape.E // shape.W
                counts = (shape.choices(source)[first + expert] for expert in local)
                ours = (_length(count, target % copies, copies) for count in counts)
                return sum(_length(count, chunk, cuts.chunks) for count in ours)

            yield sum(rows(shape.rank, j) for j in ranks), sum(rows(i, shape.rank) for i in ranks)


def _length(whole: int, index: int, chunks: int) -> int:
    return whole * (index + 1) // chunks - whole * index // chunks
