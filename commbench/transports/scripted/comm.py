"""The communicators of the scripted transport: real bytes over its mesh, at the latest moment that is allowed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from commbench.data import OPS, SIGNIFICANT, Bytes, add, decode, encode, rounded, widened
from commbench.transports.base import Array, Comm, HostMemory, Message, PutPlan, Puts, Ready, RowPutPlan, Work
from commbench.transports.rows import HostRows, Rows
from commbench.transports.scripted.row_puts import ScriptedRowPuts

_UNWRITTEN = 0xA5  # in memory that nobody has written to, where what algorithms do is looked at


class Carrier(Protocol):
    """What a communicator asks of the transport that carries its messages between global ranks."""

    rank: int
    counting: bool  # whether what algorithms do is noted, in the two lists that follow
    allocated: list[int]
    began: list[tuple[str, tuple[str, ...]]]
    pending: list[Exchange]  # started and not yet waited for, in this order

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]: ...

    def fault(self, *kinds: str, step: str = "") -> str | None: ...

    def takes_inside(self, nbytes: int) -> None: ...

    def transfer(
        self, step: str, sends: Mapping[int, Sequence[bytes]], sources: Mapping[int, Sequence[int]]
    ) -> dict[int, bytes]: ...


class ScriptedComm(HostMemory):
    """A group of global ranks over the transport's mesh."""

    rows: Rows = HostRows()

    def __init__(self, transport: Carrier, ranks: list[int]) -> None:
        self._transport = transport
        self._ranks = ranks
        self.rank = ranks.index(transport.rank)
        self.size = len(ranks)

    def copy(self, out: Array, inp: Array) -> Work:
        """Copy to or from the host: by the clock, as to another rank of the node."""
        self._transport.takes_inside(out.nbytes)  # type: ignore[attr-defined]
        return super().copy(out, inp)

    def round_trip(self, out: Array, inp: Array, host: Array, parts: Sequence[slice]) -> Work:
        self._transport.takes_inside(out.nbytes)  # type: ignore[attr-defined]
        return super().round_trip(out, inp, host, parts)

    def all_to_all(self, out: Array, inp: Array, *, step: str) -> Work:
        equal = [out.nbytes // self.size] * self.size  # type: ignore[attr-defined]
        return self.all_to_allv(out, inp, equal, equal, step=step)

    def all_to_allv(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int], *, step: str) -> Work:
        outs, inps = _parts(out, received), _parts(inp, sent)
        sends = [Message(peer, inps[peer]) for peer in self._peers() if sent[peer]]
        recvs = [Message(peer, outs[peer]) for peer in self._peers() if received[peer]]
        return self.started(sends, recvs, step, lambda: _copy(outs[self.rank], inps[self.rank]))

    def all_gather(self, out: Array, inp: Array, *, in_place: bool, step: str) -> Work:
        parts = _parts(out, [inp.nbytes] * self.size)  # type: ignore[attr-defined]
        sends = [Message(peer, inp) for peer in self._peers()]
        recvs = [Message(peer, parts[peer]) for peer in self._peers()]
        return self.started(sends, recvs, step, lambda: _copy(parts[self.rank], inp))

    def reduce_scatter(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        parts = _parts(inp, [out.nbytes] * self.size)  # type: ignore[attr-defined]
        return self._reduce(out, parts, dtype, op, step)

    def all_reduce(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        return self._reduce(out, [inp] * self.size, dtype, op, step)

    def _reduce(self, out: Array, parts: Sequence[Array], dtype: str, op: str, step: str) -> Work:
        sends = [Message(peer, parts[peer]) for peer in self._peers()]
        recvs = [Message(peer, np.empty(out.nbytes, dtype=np.uint8)) for peer in self._peers()]  # type: ignore[attr-defined,arg-type]

        def combine() -> None:
            arrived = {self.rank: parts[self.rank], **dict(recvs)}
            read: Any = widened if dtype in SIGNIFICANT else decode
            write: Any = rounded if dtype in SIGNIFICANT else encode
            total = read(cast(Bytes, arrived[0]), dtype)
            for rank in range(1, self.size):
                total = OPS[op](total, read(cast(Bytes, arrived[rank]), dtype))
            out[...] = write(total, dtype)

        return self.started(sends, recvs, step, combine)

    def broadcast(self, buffer: Array, root: int, *, step: str) -> Work:
        sends = [Message(peer, buffer) for peer in self._peers()] if self.rank == root else []
        recvs = [] if self.rank == root else [Message(root, buffer)]
        return self.started(sends, recvs, step)

    def _peers(self) -> list[int]:
        return [peer for peer in range(self.size) if peer != self.rank]

    def started(
        self, sends: Sequence[Message], recvs: Sequence[Message], step: str, finish: Callable[[], None] | None = None
    ) -> Exchange:
        return Exchange(self._transport, self._ranks, sends, recvs, step, finish)

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, step: str) -> Work:
        return self.started(sends, recvs, step)

    def add(self, out: Array, inp: Array, dtype: str) -> None:
        add(cast(Bytes, out), cast(Bytes, inp), dtype)

    def ready(self, name: str, *arguments: Any, **named: Any) -> Ready:
        return functools.partial(getattr(self, name), *arguments, **named)

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Comm:
        mine = next(ranks for ranks in partition if self.rank in ranks)
        return ScriptedComm(self._transport, [self._ranks[rank] for rank in mine])

    def puts(self, plan: PutPlan) -> Puts:
        mine = [float(edge) for route in plan.routes for edge in (route.target.start, route.target.stop)]
        edges = self._transport.all_gather(mine)[:, 2 * self.rank : 2 * self.rank + 2].astype(int)
        for peer, (start, stop) in zip(self._ranks, edges[self._ranks].tolist(), strict=True):
            if slice(start, stop) != plan.routes[self._ranks.index(peer)].arrival:
                raise ValueError(f"rank {peer} writes to {start} .. {stop}, where something else belongs")
        self.empty(plan.scratch_bytes)
        return _ScriptedPuts(self, plan)

    def row_puts(self, plan: RowPutPlan) -> Puts:
        return ScriptedRowPuts(self, plan)

    def empty(self, nbytes: int, buffers: str = "plain", *, one_sided: bool = False) -> Array:
        if self._transport.fault("out_of_memory"):
            raise MemoryError(f"planted: {nbytes} bytes")
        if self._transport.counting:
            self._transport.allocated.append(nbytes)
            return cast(Array, np.full(nbytes, _UNWRITTEN, dtype=np.uint8))
        return cast(Array, np.empty(nbytes, dtype=np.uint8))

    def write(self, array: Array, data: Bytes) -> None:
        array[: data.size] = data

    def read(self, array: Array) -> Bytes:
        return cast(Bytes, array)


class _ScriptedPuts:
    """One-sided writes as messages; the network is the same."""

    def __init__(self, comm: ScriptedComm, plan: PutPlan) -> None:
        self._comm = comm
        self._routes = plan.routes
        self._step = plan.step

    def ready(self, out: Array, inp: Array) -> Ready:
        return functools.partial(self._start, out, inp)

    def close(self) -> None:
        return None

    def _start(self, out: Array, inp: Array) -> Work:
        own = self._routes[self._comm.rank]
        others = [(peer, route) for peer, route in enumerate(self._routes) if peer != self._comm.rank]
        sends = [Message(peer, inp[route.source]) for peer, route in others if _length(route.source)]
        recvs = [Message(peer, out[route.arrival]) for peer, route in others if _length(route.arrival)]
        finish = functools.partial(_copy, out[own.arrival], inp[own.source])
        return self._comm.started(sends, recvs, self._step, finish)


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length


def _parts(array: Array, sizes: Sequence[int]) -> list[Array]:
    """Consecutive parts of `array`."""
    ends = list(itertools.accumulate(sizes))
    return [array[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _copy(out: Array, inp: Array) -> None:
    out[...] = inp


class Exchange:
    """A started exchange. Nothing is read, sent or delivered before `wait`, the latest moment that is allowed.

    So an algorithm that reads its output or changes its input too early gets it wrong here for certain.
    """

    def __init__(
        self,
        transport: Carrier,
        ranks: Sequence[int],
        sends: Sequence[Message],
        recvs: Sequence[Message],
        step: str,
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._transport = transport
        self._ranks = ranks
        self._sends = sends
        self._recvs = recvs
        self.step = step
        self._finish = finish  # what this rank does by itself once all has arrived
        if transport.counting:
            transport.began.append((step, tuple(other.step for other in transport.pending)))
        transport.pending.append(self)

    def wait(self) -> None:
        if self not in self._transport.pending:
            return
        if self._transport.pending[0] is not self:
            raise RuntimeError(f"step {self.step!r} is waited for before one that was started earlier")
        self._transport.pending.pop(0)
        untouched = self._transport.fault("untouched", step=self.step)
        payloads: dict[int, list[bytes]] = {}
        for message in self._sends:
            payloads.setdefault(self._ranks[message.peer], []).append(message.buffer.tobytes())  # type: ignore[attr-defined]
        recvs: dict[int, list[Array]] = {}
        for message in self._recvs:
            recvs.setdefault(self._ranks[message.peer], []).append(message.buffer)
        expected = {peer: [buffer.nbytes for buffer in buffers] for peer, buffers in recvs.items()}  # type: ignore[attr-defined]
        arrived = self._transport.transfer(self.step, payloads, expected)
        for peer, payload in arrived.items():
            data = np.frombuffer(payload, dtype=np.uint8)
            sizes = expected[peer]
            if data.size != sum(sizes):
                raise ValueError(f"{data.size} B came from rank {peer} where {sum(sizes)} B were expected")
            for buffer, part in zip(recvs[peer], _parts(cast(Array, data), sizes), strict=True):
                buffer[...] = part.reshape(*buffer.shape)  # type: ignore[attr-defined]
        if self._finish is not None and not untouched:
            self._finish()
