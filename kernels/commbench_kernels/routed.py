"""Tokens to the ranks of their experts and back, between the GPUs of one host: every rank writes at the others.

dispatch        each rank counts its tokens' choices and tells the others in packets, so that everybody knows where its
                rows belong: in their outputs, at once and in order. A row goes once to a rank; where it has more than
                one place there, the rank itself makes the copies when it has come.
dispatch_slots  rows go into a slot for each token of each rank, with the choices of all tokens, and nobody is asked
                before: one link latency. The rank puts them in order.
combine         each rank adds up what its experts made of a token while it reads that, and stores the sum at the
                token's rank: in the output if it is the only one, else in a slot. The token's rank adds up the slots,
                of a part of the tokens while the next part is sent.

`received` and `summed` are what they compute, in plain numpy.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from commbench_kernels import compiler, scratch

SOURCE = "routed.cu"
THREADS = 512
MOST_RANKS = 32  # a bit each
MOST_BINS, MOST_SOURCE_BINS = 1024, 4096  # as in the source
NONE = -1
_PIECES, _PIECE_TOKENS = 4, 4  # of a block's tokens, in a combine whose ranks add up: how many, and of how many tokens
_SLOT_BLOCKS = 32  # each is told all choices

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShape:
    """What all ranks know of a dispatch or combine. per_rank: experts of a rank; by_expert: a row for each choice."""

    ranks: int
    tokens: int
    top_k: int
    per_rank: int
    row_bytes: int
    by_expert: bool

    @property
    def bins(self) -> int:
        """What a rank counts of its tokens: rows for each expert, or for each rank."""
        return self.ranks * (self.per_rank if self.by_expert else 1)

    @property
    def copied(self) -> bool:
        """Whether a row that comes once may have more than one place."""
        return self.by_expert and self.top_k > 1

    def unsupported(self, *, slots: bool) -> str:
        """Return in words what the kernels cannot do; "" if they can."""
        if self.ranks > MOST_RANKS:
            return f"{self.ranks} ranks: up to {MOST_RANKS}"
        if self.bins > (MOST_SOURCE_BINS if slots else MOST_BINS) or self.bins // self.ranks > MOST_BINS:
            return f"{self.ranks * self.per_rank} experts: up to {MOST_BINS}"
        return ""

    def blocks(self, ctas: int, *, told: bool) -> int:
        """Choose blocks of threads; `ctas`: asked for, 0: by the tokens. told: each block is told all choices."""
        return ctas or max(1, min(_SLOT_BLOCKS if told else scratch.BLOCKS, self.tokens))

    def pieces(self, blocks: int, *, slots: bool) -> int:
        """Choose into how many pieces a combine cuts a block's tokens."""
        if self.top_k == 1 and not slots:  # nothing is added up
            return 1
        return max(1, min(_PIECES, self.tokens // blocks // _PIECE_TOKENS))

    def dispatch_scratch(self, blocks: int, *, slots: bool) -> int:
        if slots:
            return scratch.slot_dispatch_bytes(self.ranks, blocks, self.tokens, self.top_k, self.row_bytes)
        return scratch.dispatch_bytes(self.ranks, blocks, self.tokens, self.top_k, self.bins, copied=self.copied)

    def combine_scratch(self, *, slots: bool) -> int:
        sets = 2 if slots else int(self.top_k > 1)  # with one choice the only part goes into the output
        return scratch.combine_bytes(self.ranks, self.tokens, self.row_bytes, sets)


def keys(experts: Numbers, shape: RowShape) -> Numbers:
    """Return of each choice the rows that it begins, [.., top_k]: its expert's, or its rank's; `NONE`: none."""
    chosen = np.where((experts < 0) | (experts >= shape.ranks * shape.per_rank), NONE, experts)
    if shape.by_expert:
        return chosen
    ranks = np.where(chosen == NONE, NONE, chosen // shape.per_rank)
    for choice in range(1, shape.top_k):
        again = (ranks[..., :choice] == ranks[..., choice : choice + 1]).any(axis=-1)
        ranks[..., choice][again] = NONE
    return ranks


def order(experts: Numbers, rank: int, shape: RowShape) -> tuple[npt.NDArray[np.int64], ...]:
    """Return source, token and choice of each row of `rank`, in order; experts: [ranks, tokens, top_k]."""
    begun = keys(experts, shape)
    lowest, count = (rank * shape.per_rank, shape.per_rank) if shape.by_expert else (rank, 1)
    source, token, choice = np.nonzero((begun >= lowest) & (begun < lowest + count))
    by_key = np.argsort(begun[source, token, choice], kind="stable")
    return source[by_key], token[by_key], choice[by_key]


def places(experts: Numbers, rank: int, shape: RowShape) -> Numbers:
    """Return which row of `rank` is that of each choice, [ranks, tokens, top_k]; `NONE`: none."""
    found = np.full(experts.shape, NONE, np.int32)
    rows = order(experts, rank, shape)
    found[rows] = np.arange(len(rows[0]))
    return found


def senders(experts: Numbers, shape: RowShape) -> npt.NDArray[np.uint32]:
    """Return which ranks have a part of each token, a bit each: [ranks, tokens]."""
    begun = np.where((experts < 0) | (experts >= shape.ranks * shape.per_rank), NONE, experts)
    bits = np.where(begun == NONE, 0, 1 << (begun.clip(min=0) // shape.per_rank)).astype(np.uint32)
    found: npt.NDArray[np.uint32] = np.bitwise_or.reduce(bits, axis=2)
    return found


def received(
    rank: int, rows: Bytes, experts: Numbers, weights: npt.NDArray[np.uint32] | None, shape: RowShape
) -> Bytes:
    """Return the output of a dispatch. rows: [ranks, tokens, row_bytes], of which those for `rank` are looked at.

    weights: bits of fp32, [ranks, tokens, top_k]; None where there is nothing to tell.
    """
    source, token, choice = order(experts, rank, shape)
    parts = [rows[source, token].reshape(-1)]
    if weights is not None:
        which = choice[:, None] if shape.by_expert else np.arange(shape.top_k)[None, :]
        at = source[:, None], token[:, None], which
        said = np.column_stack([source, token, experts[at]]).astype(np.int32)
        parts += [np.ascontiguousarray(part).view(np.uint8).reshape(-1) for part in (weights[at], said)]
    return np.concatenate(parts)


def _structure(ranks: int, names: Sequence[tuple[str, Any]]) -> type[ctypes.Structure]:
    class Destination(ctypes.Structure):
        _fields_ = [("out", ctypes.c_uint64), ("scratch", ctypes.c_uint64)]

    class Call(ctypes.Structure):
        _fields_ = [("peers", Destination * ranks), *names]

    return Call


_U64, _U32 = ctypes.c_uint64, ctypes.c_uint32
_DISPATCH: list[tuple[str, Any]] = [(name, _U64) for name in ("rows", "experts", "weights", "row_bytes")]
_DISPATCH += [(name, _U32) for name in ("rank", "tokens", "top_k", "per_rank", "by_expert", "tell")]
_COMBINE: list[tuple[str, Any]] = [(name, _U64) for name in ("rows", "places", "weights", "senders", "row_bytes")]
_COMBINE += [(name, _U32) for name in ("rank", "tokens", "top_k", "pieces", "slots")]


@functools.cache
def _dispatch_type(ranks: int) -> type[ctypes.Structure]:
    return _structure(ranks, _DISPATCH)


@functools.cache
def _combine_type(ranks: int) -> type[ctypes.Structure]:
    return _structure(ranks, _COMBINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPeers:
    """Addresses, for this rank, of all ranks' outputs and scratch; and of this rank's input rows."""

    rank: int
    outs: Sequence[int]
    scratches: Sequence[int]
    rows: int


def dispatch_argument(shape: RowShape, at: RowPeers, *, experts: int, weights: int) -> ctypes.Structure:
    """Make what the kernels of a dispatch are given. experts, weights: addresses; weights 0: nothing is told."""
    call = _addressed(_dispatch_type(shape.ranks), at)
    call.experts, call.weights, call.tell = experts, weights, bool(weights)
    call.per_rank, call.by_expert = shape.per_rank, shape.by_expert
    call.row_bytes, call.tokens, call.top_k = shape.row_bytes, shape.tokens, shape.top_k
    return call  # type: ignore[no-any-return]


def combine_argument(
    shape: RowShape, at: RowPeers, *, places: int, weights: int, senders: int, slots: bool, blocks: int
) -> ctypes.Structure:
    """Make what the kernels of a combine are given: addresses of what `places` and `senders` return, and of weights."""
    call = _addressed(_combine_type(shape.ranks), at)
    call.places, call.weights, call.senders = places, weights, senders
    call.slots, call.pieces = slots, shape.pieces(blocks, slots=slots)
    call.row_bytes, call.tokens, call.top_k = shape.row_bytes, shape.tokens, shape.top_k
    return call  # type: ignore[no-any-return]


def _addressed(kind: type[ctypes.Structure], at: RowPeers) -> Any:
    call: Any = kind()
    for peer, out, area in zip(call.peers, at.outs, at.scratches, strict=True):
        peer.out, peer.scratch = out, area
    call.rows, call.rank = at.rows, at.rank
    return call


def launch(device: int, name: str, argument: ctypes.Structure, *, blocks: int, ranks: int) -> compiler.KernelLaunch:
    """Make a call of the kernel `name`."""
    return compiler.kernel(SOURCE, name, device, RANKS=ranks).bind(argument, blocks=blocks, threads=THREADS)


def least_us(
    rows_out: int, rows_in: int, row_bytes: int, link_gbps: float, latency_us: float, handshakes: int
) -> float:
    """Return the roofline: rows that leave a rank or come to it, the more of both, over a link of `link_gbps` GB/s."""
    return max(rows_out, rows_in) * row_bytes / link_gbps / 1e3 + handshakes * latency_us
