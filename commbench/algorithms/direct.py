"""direct: one call of the transport's own collective. The baseline of every comparison."""

from __future__ import annotations

from collections.abc import Callable

from commbench.algorithms.base import Bound, BoundBase
from commbench.collectives.all_to_all import AllToAll
from commbench.collectives.all_to_allv import AllToAllV
from commbench.collectives.sendrecv import SendRecv
from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Message, Work

Start = Callable[[Array, Array], Work]


class _Call(BoundBase):
    def __init__(self, start: Start) -> None:
        self.start = start


class _Direct:
    name = "direct"
    params: dict[str, tuple[int, str]] = {}

    def supports(self, spec: Spec) -> str | None:
        return None

    def steps(self, spec: Spec) -> list[Step] | None:
        return None  # which way the data go is up to the library

    def scratch_bytes(self, spec: Spec) -> int:
        return 0

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Call(self._start(comm, spec))

    def _start(self, comm: Comm, spec: Spec) -> Start:
        raise NotImplementedError


class DirectAllToAll(_Direct):
    collective = "all_to_all"

    def steps(self, spec: Spec) -> list[Step] | None:
        return [Step(name="all", sends=tuple(AllToAll().messages(spec)))]

    def _start(self, comm: Comm, spec: Spec) -> Start:
        return lambda out, inp: comm.all_to_all(out, inp, step="all")


class DirectAllToAllV(_Direct):
    collective = "all_to_allv"

    def steps(self, spec: Spec) -> list[Step] | None:
        return [Step(name="all", sends=tuple(AllToAllV().messages(spec)))]

    def _start(self, comm: Comm, spec: Spec) -> Start:
        matrix = AllToAllV().counts(spec)
        sent, received = matrix[comm.rank].tolist(), matrix[:, comm.rank].tolist()
        return lambda out, inp: comm.all_to_allv(out, inp, received, sent, step="all")


class DirectAllGather(_Direct):
    collective = "all_gather"

    def _start(self, comm: Comm, spec: Spec) -> Start:
        in_place = spec.in_place
        return lambda out, inp: comm.all_gather(out, inp, in_place=in_place, step="all")


class DirectReduceScatter(_Direct):
    collective = "reduce_scatter"

    def _start(self, comm: Comm, spec: Spec) -> Start:
        dtype, op, in_place = spec.dtype, str(spec.arguments["op"]), spec.in_place
        return lambda out, inp: comm.reduce_scatter(out, inp, dtype, op, in_place=in_place, step="all")


class DirectAllReduce(_Direct):
    collective = "all_reduce"

    def _start(self, comm: Comm, spec: Spec) -> Start:
        dtype, op, in_place = spec.dtype, str(spec.arguments["op"]), spec.in_place
        return lambda out, inp: comm.all_reduce(out, inp, dtype, op, in_place=in_place, step="all")


class DirectBroadcast(_Direct):
    collective = "broadcast"

    def _start(self, comm: Comm, spec: Spec) -> Start:
        root = int(spec.arguments["root"])
        copies = comm.rank == root and not spec.in_place

        def start(out: Array, inp: Array) -> Work:
            if copies:
                out[...] = inp
            return comm.broadcast(out, root, step="all")

        return start


class DirectSendRecv(_Direct):
    collective = "sendrecv"

    def steps(self, spec: Spec) -> list[Step] | None:
        return [Step(name="all", sends=tuple(SendRecv().messages(spec)))]

    def _start(self, comm: Comm, spec: Spec) -> Start:
        to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        return lambda out, inp: comm.exchange([Message(to, inp)], [Message(source, out)], step="all")
