"""direct: one call of the transport's own collective. The baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.collectives.all_to_all import AllToAll
from commbench.collectives.all_to_allv import AllToAllV
from commbench.collectives.pairs import Pairs, peers
from commbench.collectives.sendrecv import SendRecv
from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Message, Ready, Work


class _Bound(BoundBase):
    """One method of the communicator, whose buffers are output and input, with the same `arguments` in every call."""

    def __init__(self, comm: Comm, method: str, *arguments: Any, **named: Any) -> None:
        self._comm = comm
        self._method = method
        self._arguments = arguments
        self._named = {**named, "step": "all"}

    def start(self, out: Array, inp: Array) -> Work:
        work: Work = getattr(self._comm, self._method)(out, inp, *self._arguments, **self._named)
        return work

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        return [self._comm.ready(self._method, *pair, *self._arguments, **self._named) for pair in pairs]


class _Direct(AlgorithmBase):
    name = "direct"

    def steps(self, spec: Spec) -> list[Step] | None:
        return None  # which way the data go is up to the library


class DirectAllToAll(_Direct):
    collective = "all_to_all"

    def steps(self, spec: Spec) -> list[Step] | None:
        return [Step(name="all", sends=tuple(AllToAll().messages(spec)))]

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, "all_to_all")


class DirectAllToAllV(_Direct):
    collective = "all_to_allv"

    def steps(self, spec: Spec) -> list[Step] | None:
        return [Step(name="all", sends=tuple(AllToAllV().messages(spec)))]

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        matrix = AllToAllV().counts(spec)
        return _Bound(comm, "all_to_allv", matrix[:, comm.rank].tolist(), matrix[comm.rank].tolist())


class DirectAllGather(_Direct):
    collective = "all_gather"

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, "all_gather", in_place=spec.in_place)


class DirectReduceScatter(_Direct):
    collective = "reduce_scatter"

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, "reduce_scatter", spec.dtype, str(spec.arguments["op"]), in_place=spec.in_place)


class DirectAllReduce(_Direct):
    collective = "all_reduce"

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, "all_reduce", spec.dtype, str(spec.arguments["op"]), in_place=spec.in_place)


class DirectBroadcast(_Direct):
    """Libraries have it in place only, so out of place the root copies its input first."""

    collective = "broadcast"

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        root = int(spec.arguments["root"])
        return _Broadcast(comm, root, copies=comm.rank == root and not spec.in_place)


class _Broadcast(BoundBase):
    def __init__(self, comm: Comm, root: int, *, copies: bool) -> None:
        self._comm = comm
        self._root = root
        self._copies = copies

    def start(self, out: Array, inp: Array) -> Work:
        if self._copies:
            out[...] = inp
        return self._comm.broadcast(out, self._root, step="all")

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        if self._copies:
            return super().bind(pairs)
        return [self._comm.ready("broadcast", out, self._root, step="all") for out, _ in pairs]


class DirectSendRecv(_Direct):
    collective = "sendrecv"

    def steps(self, spec: Spec) -> list[Step] | None:
        return [Step(name="all", sends=tuple(SendRecv().messages(spec)))]

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _TwoSided(comm, (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size)


class DirectPairs(_Direct):
    collective = "pairs"

    def steps(self, spec: Spec) -> list[Step] | None:
        return [Step(name="all", sends=tuple(Pairs().messages(spec)))]

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _TwoSided(comm, *peers(spec, comm.rank))


class _TwoSided(BoundBase):
    """The whole input to one rank, the whole output from one; None where there is nobody."""

    def __init__(self, comm: Comm, to: int | None, source: int | None) -> None:
        self._comm = comm
        self._to, self._source = to, source

    def start(self, out: Array, inp: Array) -> Work:
        return self._comm.exchange(*self._messages(out, inp), step="all")

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        return [self._comm.ready("exchange", *self._messages(*pair), step="all") for pair in pairs]

    def _messages(self, out: Array, inp: Array) -> tuple[list[Message], list[Message]]:
        sends = [] if self._to is None else [Message(self._to, inp)]
        return sends, [] if self._source is None else [Message(self._source, out)]
