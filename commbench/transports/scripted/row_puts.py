"""Dispatch and combine by one-sided writes, as messages: the network is the same, and what kernels do is numpy's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
from commbench_kernels import routed
from commbench_kernels.routed import NONE, RowShape

from commbench.data import Bytes, rounded, widened
from commbench.transports.base import Array, Comm, Message, Ready, RowPutPlan, Work

_NUMBER_BYTES = 4


class _Starting(Comm, Protocol):
    def started(
        self, sends: Sequence[Message], recvs: Sequence[Message], step: str, finish: Callable[[], None]
    ) -> Work:
        """Start a batch of messages; `finish` is what this rank does by itself once all has arrived."""
        ...


class ScriptedRowPuts:
    def __init__(self, comm: _Starting, plan: RowPutPlan) -> None:
        self._comm, self._plan = comm, plan
        ranks, tokens, top_k = plan.experts.shape
        self._shape = RowShape(
            ranks=ranks, tokens=tokens, top_k=top_k, per_rank=plan.per_rank, row_bytes=plan.row_bytes,
            by_expert=plan.by_expert,
        )  # fmt: skip
        # [ranks, tokens] of each rank: whether the token has an expert there.
        found = routed.senders(plan.experts, self._shape)
        self._there = [found >> rank & 1 == 1 for rank in range(ranks)]
        comm.empty(plan.scratch_bytes)

    def ready(self, out: Array, inp: Array) -> Ready:
        return functools.partial(self._combine if self._plan.combines else self._dispatch, out, inp)

    def close(self) -> None:
        return None

    def _dispatch(self, out: Array, inp: Array) -> Work:
        shape, plan, comm, me = self._shape, self._plan, self._comm, self._comm.rank
        given, at = cast(Bytes, inp), shape.tokens * shape.row_bytes
        rows = np.zeros((shape.ranks, shape.tokens, shape.row_bytes), np.uint8)
        rows[me] = given[:at].reshape(shape.tokens, -1)
        said = np.full((shape.ranks, shape.tokens, 2 * shape.top_k), NONE, np.int32)  # weights, experts
        if plan.told:
            said[me] = np.hstack([*given[at:].view(np.int32).reshape(2, shape.tokens, shape.top_k)])
        peers = [peer for peer in range(shape.ranks) if peer != me]
        if len(plan.steps) > 1:
            counts = np.zeros(shape.bins * _NUMBER_BYTES, np.uint8)
            tell = [Message(peer, cast(Array, counts)) for peer in peers]
            hear = [Message(peer, cast(Array, counts.copy())) for peer in peers]
            comm.exchange(tell, hear, step=plan.steps[0]).wait()
        sends = [(peer, self._packed(rows[me], said[me], self._there[peer][me])) for peer in peers]
        recvs = [(peer, self._packed(rows[peer], said[peer], self._there[me][peer])) for peer in peers]

        def arrange() -> None:
            for source, arrived in recvs:
                self._unpack(arrived, rows[source], said[source], self._there[me][source])
            experts = np.ascontiguousarray(said[..., shape.top_k :]) if plan.told else plan.experts
            weights = said[..., : shape.top_k].view(np.uint32) if plan.told else None
            made = routed.received(me, rows, experts, weights, shape)[: len(out)]  # longer where what was told is wrong
            out[: len(made)] = cast(Array, made)

        return comm.started(_messages(sends), _messages(recvs), plan.steps[-1], arrange)

    def _packed(self, rows: Bytes, said: npt.NDArray[np.int32], which: npt.NDArray[np.bool_]) -> Bytes:
        """Return what goes to a rank: the rows with an expert there; and what is told of them, or of all tokens."""
        parts: list[npt.NDArray[np.generic]] = [rows[which].reshape(-1)]
        if self._plan.slots:
            parts.append(said[:, 0 if self._plan.told else self._shape.top_k :])
        elif self._plan.told:
            token = np.flatnonzero(which).astype(np.int32)[:, None]
            parts.append(np.hstack([np.full_like(token, self._comm.rank), token, said[which]]))
        return np.concatenate([np.ascontiguousarray(part).view(np.uint8).reshape(-1) for part in parts])

    def _unpack(self, arrived: Bytes, rows: Bytes, said: npt.NDArray[np.int32], which: npt.NDArray[np.bool_]) -> None:
        count, top_k = int(which.sum()), self._shape.top_k
        behind = count * self._shape.row_bytes
        rows[which] = arrived[:behind].reshape(count, self._shape.row_bytes)
        if self._plan.told:
            numbers = arrived[behind:].view(np.int32).reshape(-1, 2 * top_k + (0 if self._plan.slots else 2))
            said[slice(None) if self._plan.slots else which] = numbers[:, -2 * top_k :]

    def _combine(self, out: Array, inp: Array) -> Work:
        shape, comm, me = self._shape, self._comm, self._comm.rank
        places = routed.places(self._plan.experts, me, shape)
        numbers = widened(cast(Bytes, inp).reshape(-1, shape.row_bytes), self._plan.dtype)
        parts = np.zeros((shape.ranks, shape.tokens, numbers.shape[1]), np.float32)
        for choice in range(shape.top_k):
            source, token = np.nonzero(places[..., choice] != NONE)
            weights = self._plan.weights[source, token, choice] if shape.by_expert else np.ones(len(source), np.float32)
            parts[source, token] += weights[:, None] * numbers[places[source, token, choice]]
        peers = [peer for peer in range(shape.ranks) if peer != me]
        made = rounded(parts, self._plan.dtype).view(np.uint8).reshape(shape.ranks, shape.tokens, shape.row_bytes)
        sends = [(peer, made[peer][self._there[me][peer]].reshape(-1)) for peer in peers]
        recvs = [(peer, np.empty(int(self._there[peer][me].sum()) * shape.row_bytes, np.uint8)) for peer in peers]

        def add_up() -> None:
            total = parts[me].copy()
            for peer, arrived in recvs:
                total[self._there[peer][me]] += widened(arrived.reshape(-1, shape.row_bytes), self._plan.dtype)
            out[...] = cast(Array, rounded(total, self._plan.dtype).view(np.uint8).reshape(-1))

        return comm.started(_messages(sends), _messages(recvs), self._plan.steps[-1], add_up)


def _messages(parts: list[tuple[int, Bytes]]) -> list[Message]:
    return [Message(peer, cast(Array, part)) for peer, part in parts if part.size]
