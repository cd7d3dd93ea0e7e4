"""What a rank sends of the tokens that all t ranks of its group hold: everything, or its share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from commbench.communicators.base import CommLike
from commbench.errors import unknown
from moe_ref.experts import by_expert, by_source
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
from moe_ref.schedules.tp_exchange import AsyncCall, TPExchange, by_group, by_sender, by_tp_rank

TP_TOKENS = ("duplicate", "drop", "drop_pipelined", "profile")


@dataclass(frozen=True, slots=True)
class TensorParallel(PlannedSchedule):
    """Sends what tp_tokens says of the tokens that all ranks of a group hold.

    duplicate: all of them, to the ranks of its tp_rank in other groups; sums by all_reduce. DeepSpeed before June 2024
        (its pull request 5626), and what MoNTA's factor of 8 must be over.
    drop: 1 / t of them, and the receivers gather, all but what their own group has sent, which is there. Of summands a
        rank gets those for its share by all_to_all and adds them up; DeepSpeed takes all_reduce and drops, twice the
        bytes, and so would gloo's own reduce_scatter.
    drop_pipelined: `drop` in `chunks` along capacity: one is between groups while the one before is gathered, and the
        one after it is summed. In both passes; MoNTA's code (arXiv 2411.00662) overlaps the forward pass only.
    profile: one `tp_all_to_all` of `comm` each way: the profile decides, or without one commbench's default.

    The first three are issued here, call by call, on `ep` and `tp`, and each call goes by the profiles of these. Where
    all ranks are one group, `profile` is `duplicate`, which sends nothing then. The ranks of a group give generators of
    the same state.
    """

    name: ClassVar[str] = "tensor_parallel"
    tp_tokens: str = "profile"
    chunks: int = 4

    def __post_init__(self) -> None:
        if self.tp_tokens not in TP_TOKENS:
            raise unknown("tp_tokens", self.tp_tokens, TP_TOKENS)
        check_chunks(self.chunks)

    def __str__(self) -> str:
        chunks = f" chunks={self.chunks}" if self.tp_tokens == "drop_pipelined" else ""
        return f"{self.name} tp_tokens={self.tp_tokens}{chunks}"

    def exchange(self, layer: Layer) -> TPExchange:
        assert layer.tp is not None
        match self._sent(layer.ep.size):
            case "duplicate":
                return DuplicateExchange(layer.tp, layer.ep)
            case "profile":
                return ProfileExchange(layer.comm, layer.tp.size)
        return DropExchange(layer.tp, layer.ep, self._chunks)

    def stages(self, shape: Shape) -> list[Stage]:
        whole = shape.E * capacity_of(shape) * shape.row_bytes
        match self._sent(shape.W // shape.tp):
            case "duplicate":
                exchange = CollectiveCall("exchange", "all_to_all", "ep", whole)
                there, back = (
                    [exchange],
                    [CollectiveCall("sum", "all_reduce", "tp", whole), exchange._replace(after=("sum",))],
                )
            case "profile":
                there = [CollectiveCall("replicated", "tp_all_to_all", "comm", whole)]
                back = [CollectiveCall("partial", "tp_all_to_all", "comm", whole)]
            case _:
                there, back = self._dispatch_plan(shape), self._combine_plan(shape)
        return both_passes(shape, there, back)

    def _sent(self, groups: int) -> str:
        """Return what is sent. With one group a profile has nothing to choose: nobody sends, and the group adds up."""
        return "duplicate" if self.tp_tokens == "profile" and groups == 1 else self.tp_tokens

    @property
    def _chunks(self) -> int:
        return self.chunks if self.tp_tokens == "drop_pipelined" else 1

    def _shares(self, shape: Shape) -> list[int]:
        """Count the bytes that this rank sends of each chunk."""
        slots = chunk_slices(slots_per_rank(capacity_of(shape), shape.tp), self._chunks)
        return [shape.E * (cut.stop - cut.start) * shape.row_bytes for cut in slots]

    def _dispatch_plan(self, shape: Shape) -> list[CollectiveCall]:
        calls, groups = [], shape.W // shape.tp
        shares = self._shares(shape)
        for i in range(len(shares) + 1):  # a chunk is exchanged before the one before it is gathered
            before = call_of_chunk("exchange", i - 1) + call_of_chunk("gather", i - 3)
            if i < len(shares):
                calls.append(CollectiveCall(f"exchange-{i}", "all_to_all", "ep", shares[i], before))
            if i:
                others = shares[i - 1] * shape.tp * (groups - 1) // groups
                calls.append(CollectiveCall(f"gather-{i - 1}", "all_gather", "tp", others, before))
        return calls

    def _combine_plan(self, shape: Shape) -> list[CollectiveCall]:
        shares = self._shares(shape)
        calls = [CollectiveCall("sum-0", "all_to_all", "tp", shares[0] * shape.tp)]
        for i, nbytes in enumerate(shares):
            before = call_of_chunk("sum", i) + call_of_chunk("exchange", i - 1) + call_of_chunk("gather", i - 3)
            calls.append(CollectiveCall(f"exchange-{i}", "all_to_all", "ep", nbytes, before))
            if i + 1 < len(shares):
                calls.append(CollectiveCall(f"sum-{i + 1}", "all_to_all", "tp", shares[i + 1] * shape.tp, before))
            if i:
                calls.append(CollectiveCall(f"gather-{i - 1}", "all_gather", "tp", shares[i - 1] * shape.tp, before))
        last = len(shares) - 1
        before = call_of_chunk("exchange", last) + call_of_chunk("gather", last - 2)
        return [*calls, CollectiveCall(f"gather-{last}", "all_gather", "tp", shares[last] * shape.tp, before)]


class DuplicateExchange:
    """All ranks of a group send everything to those of their tp_rank, and summands are added up before that."""

    def __init__(self, tp: CommLike, ep: CommLike) -> None:
        self.tp, self.ep = tp, ep

    def dispatch(self, buffer_ECD: Tensor) -> Tensor:
        return by_expert(self._swapped(by_group(buffer_ECD, self.ep.size)))

    def combine(self, rows_END: Tensor) -> Tensor:
        sums_END = torch.empty_like(rows_END)
        self.tp.all_reduce(sums_END, rows_END)
        return self._swapped(by_source(sums_END, self.ep.size)).flatten(0, 1)

    def _swapped(self, blocks_GECD: Tensor) -> Tensor:
        found_GECD = torch.empty_like(blocks_GECD)
        self.ep.all_to_all(found_GECD, blocks_GECD)
        return found_GECD


class ProfileExchange:
    """Makes one call each way, for which the profile of `comm` has the algorithm."""

    def __init__(self, comm: CommLike, tp_size: int) -> None:
        self.comm, self.tp_size, self.groups = comm, tp_size, comm.size // tp_size

    def dispatch(self, buffer_ECD: Tensor) -> Tensor:
        return by_expert(self._exchanged(by_group(buffer_ECD, self.groups), "replicated"))

    def combine(self, rows_END: Tensor) -> Tensor:
        return self._exchanged(by_source(rows_END, self.groups), "partial").flatten(0, 1)

    def _exchanged(self, blocks_GECD: Tensor, tp_input: str) -> Tensor:
        found_GECD = torch.empty_like(blocks_GECD)
        self.comm.tp_all_to_all(found_GECD, blocks_GECD, tp=self.tp_size, tp_input=tp_input)
        return found_GECD


class DropExchange:
    """Each rank of a group sends its share of the slots, and the group gathers the rest.

    Which slots a rank carries is free, so a chunk is a run of slots, and each rank has a run of that.

    `ep` has one exchange in flight at the most, as two would share its links; all ranks issue the same order.
    """

    def __init__(self, tp: CommLike, ep: CommLike, chunks: int) -> None:
        self.tp, self.ep, self.chunks = tp, ep, chunks

    def dispatch(self, buffer_ECD: Tensor) -> Tensor:
        blocks_GECD = by_group(buffer_ECD, self.ep.size)
        groups, here, capacity, width = blocks_GECD.shape
        tp_size, me = self.tp.size, self.ep.rank
        rows_EGCD = blocks_GECD.new_empty(here, groups, capacity, width)
        cuts = self._cuts(capacity)

        def exchange(cut: slice) -> AsyncCall:
            return AsyncCall(self.ep, "all_to_all", by_tp_rank(blocks_GECD[:, :, cut], tp_size)[:, :, self.tp.rank])

        def store(gather: AsyncCall, cut: slice) -> None:
            gathered_PGECD = by_sender(gather.wait(), tp_size)
            for to, source in ((slice(me), slice(me)), (slice(me + 1, None), slice(me, None))):
                by_tp_rank(rows_EGCD[:, to, cut], tp_size).copy_(gathered_PGECD[:, source].permute(2, 1, 0, 3, 4))

        flying, gathers = exchange(cuts[0]), list[AsyncCall]()
        rows_EGCD[:, me] = blocks_GECD[me]  # what the own group has sent is here
        for i in range(len(cuts)):
            found_GECD = flying.wait()
            if i + 1 < len(cuts):
                flying = exchange(cuts[i + 1])
            gathers.append(AsyncCall(self.tp, "all_gather", _without(found_GECD, me)))
            if i:
                store(gathers[i - 1], cuts[i - 1])
        store(gathers[-1], cuts[-1])
        return rows_EGCD.flatten(1, 2)

    def combine(self, rows_END: Tensor) -> Tensor:
        here, rows, width = rows_END.shape
        tp_size, groups = self.tp.size, self.ep.size
        rows_EGCD = rows_END.view(here, groups, rows // groups, width)
        out_GECD = rows_END.new_empty(groups, here, rows // groups, width)
        cuts = self._cuts(rows // groups)

        def summands(cut: slice) -> AsyncCall:
            summands_PGECD = by_tp_rank(rows_EGCD[:, :, cut], tp_size).permute(2, 1, 0, 3, 4)
            return AsyncCall(self.tp, "all_to_all", summands_PGECD.flatten(0, 1))

        def store(gather: AsyncCall, cut: slice) -> None:
            gathered_PGECD = by_sender(gather.wait(), tp_size)
            by_tp_rank(out_GECD[:, :, cut], tp_size).copy_(gathered_PGECD.permute(1, 2, 0, 3, 4))

        sums, exchanges, gathers = summands(cuts[0]), list[AsyncCall](), list[AsyncCall]()
        for i in range(len(cuts)):
            sums_GECD = by_sender(sums.wait(), tp_size).sum(0)
            arrived = exchanges[i - 1].wait() if i else None
            exchanges.append(AsyncCall(self.ep, "all_to_all", sums_GECD))
            if i + 1 < len(cuts):
                sums = summands(cuts[i + 1])
            if arrived is not None:
                gathers.append(AsyncCall(self.tp, "all_gather", arrived))
            if i > 1:
                store(gathers[i - 2], cuts[i - 2])
        gathers.append(AsyncCall(self.tp, "all_gather", exchanges[-1].wait()))
        for i in range(max(0, len(cuts) - 2), len(cuts)):
            store(gathers[i], cuts[i])
        return out_GECD.flatten(0, 1)

    def _cuts(self, capacity: int) -> list[slice]:
        tp_size = self.tp.size
        cuts = chunk_slices(slots_per_rank(capacity, tp_size), self.chunks)
        return [slice(tp_size * cut.start, tp_size * cut.stop) for cut in cuts]


def _without(found_GECD: Tensor, group: int) -> Tensor:
    """Return what is of all groups but one, contiguous, which at either end is a view."""
    if group in (0, len(found_GECD) - 1):
        return found_GECD[1:] if group == 0 else found_GECD[:-1]
    return torch.cat([found_GECD[:group], found_GECD[group + 1 :]])
