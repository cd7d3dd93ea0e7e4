"""Dispatch buffers to the ranks of their experts, and back: whole or in chunks, of equal blocks or of sorted rows.

W ranks share E experts. With E_g = E / W >= 1 rank w has experts w E_g .. (w + 1) E_g - 1. With q = W / E > 1 ranks
e q .. (e + 1) q - 1 each have one of q pieces of expert e (`moe_ref.sharding`), and r says how tokens get there: r
ranks in turn hold the whole of it between them after the pieces have been gathered, so that every row goes to r
ranks, whose outputs are summed when they are back, and an expert's rows divide among its q / r copies. W blocks go
out in any case.

    exchange = create(comm, routing, r=1, chunks=d)     collective for dropless: ranks tell each other their counts
    chunks = exchange.split(buffer)                     what is sent, chunk by chunk
    chunk.inp, chunk.collective, chunk.dispatch_args    a call of the communicator
    chunk.sort(arrived)                                 its output as experts take it
    chunk.unsort(out), chunk.combine_args               theirs as it goes back, and the call's arguments
    exchange.join(returned)                             of all chunks, as the dispatch buffer is
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from commbench.communicators.base import CommLike
from commbench.errors import UsageError
from moe_ref.experts import by_expert, by_source
from moe_ref.routing import Routing


class ExchangeChunk(Protocol):
    """A chunk of what one layer sends. `counts_E`: of the sorted rows; None for equal blocks.

    inp: what goes out, [W, e, c, D] or rows [n, D]. experts: those of this rank that it is for, of all e = E_g.
    """

    inp: Tensor
    experts: slice
    collective: str
    dispatch_args: dict[str, Any]  # arguments of the collective, on the way there
    combine_args: dict[str, Any]

    @property
    def counts_E(self) -> Tensor | None: ...

    def sort(self, arrived: Tensor) -> Tensor:
        """Return what arrived, as experts take it: [e, W c, D], or rows sorted by expert."""

    def unsort(self, out: Tensor) -> Tensor:
        """Return what experts made of it, as it goes back."""


def bounds(length: int, index: int, chunks: int) -> tuple[int, int]:
    """Return first and last + 1 of chunk `index`: chunks of nearly equal length, the longer ones spread evenly."""
    return length * index // chunks, length * (index + 1) // chunks


def allowed_r(pieces: int) -> list[int]:
    """Return what r may be: 0, or a divisor of q."""
    return [0, *(r for r in range(1, pieces + 1) if pieces % r == 0)]


def create(
    comm: CommLike, routing: Routing, *, r: int = 1, chunks: int = 1, groups: int = 1
) -> EvenExchange | UnevenExchange:
    """Make the exchange of a routing over `comm`, in `chunks` by capacity or in `groups` by expert.

    Collective for dropless: one all_gather of counts.
    """
    ranks, experts = comm.size, routing.experts
    if routing.capacity is not None:
        return EvenExchange(ranks, experts, routing.capacity, r=r, chunks=chunks, groups=groups)
    return UnevenExchange(comm.rank, gather_counts(comm, routing), r=r, chunks=chunks, groups=groups)


def gather_counts(comm: CommLike, routing: Routing) -> Tensor:
    """Gather the counts of all ranks, int64 [W, E], on the host. Collective.

    `exchange_counts` of the communicator is for W counts of each rank, these are E; and from a GPU the host waits once.
    """
    counts_WE = routing.counts_E.new_empty(comm.size, routing.experts)
    comm.all_gather(counts_WE, routing.counts_E[None])
    return counts_WE.cpu()


class EvenExchange:
    """Exchanges buffers [E, C, D] by all_to_all. Capacity is padded to a multiple of q / r with rows of 0."""

    def __init__(
        self, ranks: int, experts: int, capacity: int, *, r: int = 1, chunks: int = 1, groups: int = 1
    ) -> None:
        self.ranks, self.experts, self.capacity = ranks, experts, capacity
        self.here = max(1, experts // ranks)  # E_g
        self.r, self.copies = _r_and_copies(ranks, experts, r)
        self.sent = -(-capacity // self.copies)  # rows of one block for one expert
        self.chunks, self.groups = chunks, groups

    def split(self, buffer: Tensor) -> list[EvenChunk]:
        """Cut the buffer [E, C, D] into what is sent."""
        blocks_WECD = self._blocks(buffer)
        if self.groups > 1:
            return [EvenChunk(blocks_WECD, slice(*bounds(self.here, i, self.groups)), slice(None))
                    for i in range(self.groups)]  # fmt: skip
        return [EvenChunk(blocks_WECD, slice(None), slice(*bounds(self.sent, i, self.chunks)))
                for i in range(self.chunks)]  # fmt: skip

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Put what came back together, as the dispatch buffer [E, C, D]."""
        blocks_WECD = outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim=1 if self.groups > 1 else 2)
        width = blocks_WECD.shape[-1]
        if self.ranks <= self.experts:
            return blocks_WECD.view(self.experts, self.capacity, width)
        blocks = blocks_WECD.view(self.experts, self.r, self.copies * self.sent, width)
        return blocks.sum(1)[:, : self.capacity] if self.r > 1 else blocks[:, 0, : self.capacity]

    def _blocks(self, buffer: Tensor) -> Tensor:
        """Make [W, E_g, rows, D]: what each rank gets."""
        width = buffer.shape[-1]
        if self.ranks <= self.experts:
            return buffer.view(self.ranks, self.here, self.capacity, width)
        padded = functional.pad(buffer, (0, 0, 0, self.copies * self.sent - self.capacity))
        repeated = padded[:, None].expand(-1, self.r, -1, -1)
        return repeated.reshape(self.ranks, 1, self.sent, width)


class EvenChunk:
    """Holds some experts, or some rows of all experts, of the blocks [W, E_g, rows, D]."""

    counts_E: Tensor | None = None
    collective = "all_to_all"

    def __init__(self, blocks_WECD: Tensor, experts: slice, rows: slice) -> None:
        self.inp = blocks_WECD[:, experts, rows].contiguous()
        self.experts = experts
        self.dispatch_args: dict[str, Any] = {}
        self.combine_args: dict[str, Any] = {}

    def sort(self, arrived: Tensor) -> Tensor:
        return by_expert(arrived)

    def unsort(self, out: Tensor) -> Tensor:
        return by_source(out, len(self.inp))


class UnevenExchange:
    """Exchanges rows [rows, D], sorted by expert, by all_to_allv. All ranks know the counts of all."""

    def __init__(self, rank: int, counts_WE: Tensor, *, r: int = 1, chunks: int = 1, groups: int = 1) -> None:
        """counts_WE: int64, on the host: rows of each rank for each expert."""
        self.rank, self.chunks, self.groups = rank, chunks, groups
        self.ranks, self.experts = counts_WE.shape
        self.here = max(1, self.experts // self.ranks)
        self.r, copies = _r_and_copies(self.ranks, self.experts, r)
        # Of each source (rows), target (columns) and expert of the target: where the rows are, and how many.
        target_W = torch.arange(self.ranks)
        first_W = target_W * self.experts // self.ranks
        expert_WG = first_W[:, None] + torch.arange(self.here)
        before_WWG = (counts_WE.cumsum(1) - counts_WE)[:, expert_WG]
        first_WWG, last_WWG = _bounds(counts_WE[:, expert_WG], (target_W % copies)[:, None], copies)
        self.first_WWG, self.length_WWG = before_WWG + first_WWG, last_WWG - first_WWG
        self._positions: Tensor | None = None  # None: rows go out in the order in which they are

    def split(self, buffer: Tensor) -> list[UnevenChunk]:
        """Cut the rows [rows, D] into what is sent."""
        made = [UnevenChunk(self, i) for i in range(max(self.chunks, self.groups))]
        if len(made) > 1 or self.ranks > self.experts:
            sent = torch.cat([chunk.index for chunk in made]).to(buffer.device)
            # Rows are sent r times each: where they are in what is sent, r numbers for each.
            self._positions = sent.argsort(stable=True)
            buffer = _take(buffer, sent, self._positions, self.r)
        for chunk, rows in zip(made, torch.split(buffer, [len(chunk.index) for chunk in made]), strict=True):
            chunk.inp = rows
        return made

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Put what came back together, as the rows [rows, D]."""
        back_ND = outputs[0] if len(outputs) == 1 else torch.cat(list(outputs))
        if self._positions is None:
            return back_ND
        rows_ND = _take(back_ND, self._positions, self._positions.argsort(), 1)
        return rows_ND if self.r == 1 else rows_ND.view(-1, self.r, rows_ND.shape[1]).sum(1)


class UnevenChunk:
    """Holds some experts, or some rows of each expert."""

    collective = "all_to_allv"
    inp: Tensor

    def __init__(self, exchange: UnevenExchange, number: int) -> None:
        me = exchange.rank
        self.experts = slice(*bounds(exchange.here, number, exchange.groups)) if exchange.groups > 1 else slice(None)
        first_WWG, length_WWG = (of[:, :, self.experts] for of in (exchange.first_WWG, exchange.length_WWG))
        if exchange.chunks > 1:
            start_WWG, stop_WWG = _bounds(length_WWG, number, exchange.chunks)
            first_WWG, length_WWG = first_WWG + start_WWG, stop_WWG - start_WWG
        self.index = _indices(first_WWG[me], length_WWG[me])  # of the rows that this rank sends
        matrix_WW = length_WWG.sum(2)
        sent, received = matrix_WW[me].tolist(), matrix_WW[:, me].tolist()
        self.dispatch_args: dict[str, Any] = {"received": received, "sent": sent, "matrix": matrix_WW.tolist()}
        self.combine_args: dict[str, Any] = {"received": sent, "sent": received, "matrix": matrix_WW.t().tolist()}
        self._arrived_WG = length_WWG[:, me]  # rows of each source for each expert
        self._index: tuple[Tensor, Tensor] | None = None

    @property
    def counts_E(self) -> Tensor:
        return self._arrived_WG.sum(0)  # on the host, where it is known

    def sort(self, arrived: Tensor) -> Tensor:
        ranks, experts = self._arrived_WG.shape
        if ranks > 1 and experts > 1:
            first_WG = (self._arrived_WG.flatten().cumsum(0) - self._arrived_WG.flatten()).view(ranks, experts)
            index = _indices(first_WG.t(), self._arrived_WG.t()).to(arrived.device)
            self._index = index, index.argsort()
            return _take(arrived, *self._index, 1)
        return arrived

    def unsort(self, out: Tensor) -> Tensor:
        if self._index is None:
            return out
        index, inverse = self._index
        return _take(out, inverse, index, 1)


class _Take(torch.autograd.Function):
    """Takes rows by index, each row equally often, so that backward is a look-up too, with a fixed order of sums."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, index_M: Tensor, positions_M: Tensor, times: int) -> Tensor:
        ctx.save_for_backward(positions_M)
        ctx.times = times
        return x_ND.index_select(0, index_M)

    @staticmethod
    def backward(ctx: Any, gradient_MD: Tensor) -> tuple[Tensor, None, None, None]:
        (positions_M,) = ctx.saved_tensors
        rows_MD = gradient_MD.index_select(0, positions_M)
        if ctx.times > 1:
            rows_MD = rows_MD.view(-1, ctx.times, rows_MD.shape[1]).sum(1)
        return rows_MD, None, None, None


def _take(x_ND: Tensor, index_M: Tensor, positions_M: Tensor, times: int) -> Tensor:
    """Take rows index_M of x, where row n is taken `times` times, at positions_M[n times .. (n + 1) times - 1]."""
    taken_MD: Tensor = _Take.apply(x_ND, index_M, positions_M, times)  # type: ignore[no-untyped-call]
    return taken_MD


def _bounds(length: Tensor, index: Tensor | int, chunks: int) -> tuple[Tensor, Tensor]:
    """Return `bounds` of many lengths."""
    return length * index // chunks, length * (index + 1) // chunks


def _indices(first: Tensor, length: Tensor) -> Tensor:
    """List all numbers first .. first + length - 1, one run after the other."""
    first, length = first.flatten(), length.flatten()
    shift = first - (length.cumsum(0) - length)
    return torch.repeat_interleave(shift, length) + torch.arange(int(length.sum()))


def _r_and_copies(ranks: int, experts: int, r: int) -> tuple[int, int]:
    """Return r and q / r, the number of ranks on which a whole expert then is, in pieces of r."""
    pieces = max(1, ranks // experts)
    if r not in allowed_r(pieces)[1:]:
        raise UsageError(f"r={r} for {experts} experts on {ranks} ranks",
                         hint=f"a divisor of {pieces}: {', '.join(map(str, allowed_r(pieces)[1:]))}")  # fmt: skip
    return r, pieces // r
