"""What a rank really sends in a call, to be held against the messages that its algorithm declares."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from commbench.algorithms.base import Algorithm
from commbench.spec import Spec
from commbench.transports.base import Array, Comm, Message, PutPlan, Puts, Ready, RowPutPlan, Work

Sent = Counter[tuple[str, int, int]]  # (step, rank of the spec that it goes to, bytes) -> messages


def declared(algorithm: Algorithm, spec: Spec, rank: int) -> Sent | None:
    """Return what `rank` sends in a call by the algorithm's own words; None where a library chooses the way."""
    steps = algorithm.steps(spec)
    if steps is None:
        return None
    return Counter((step.name, send.dst, send.nbytes) for step in steps for send in step.sends if send.src == rank)


def difference(said: Sent, sent: Sent) -> str:
    """Return in words what was declared and not sent, or the reverse; "" where they are the same."""
    if said == sent:
        return ""
    texts = [f"{sum(said.values())} messages, {_bytes(said)} B declared, {sum(sent.values())}, {_bytes(sent)} B sent"]
    for kind, odd in (("declared and not sent", said - sent), ("sent and not declared", sent - said)):
        for step, peer, nbytes in sorted(odd)[:1]:
            texts.append(f"{kind}: {nbytes} B to rank {peer} in step {step!r}")
    return "; ".join(texts)


def _bytes(messages: Sent) -> int:
    return sum(count * nbytes for (_, _, nbytes), count in messages.items())


class RecordingComm:
    """A communicator that notes what this rank sends, beside sending it.

    `members` are the ranks of the spec in this communicator; `sent` takes the notes, those of sub-groups too. What one
    of the library's own collectives sends is taken as its shortest way has it: each rank's part to every other.
    """

    def __init__(self, comm: Comm, members: Sequence[int], sent: Sent) -> None:
        self.rank, self.size = comm.rank, comm.size
        self._comm, self._members, self._sent = comm, members, sent

    def __getattr__(self, name: str) -> Any:
        """Hand on what sends nothing: `add`, `empty`, `write`, `read`."""
        return getattr(self._comm, name)

    def _note(self, step: str, peer: int, nbytes: int) -> None:
        if peer != self.rank and nbytes:
            self._sent[step, self._members[peer], nbytes] += 1

    def _note_all(self, step: str, nbytes: int) -> None:
        for peer in range(self.size):
            self._note(step, peer, nbytes)

    def all_to_all(self, out: Array, inp: Array, *, step: str) -> Work:
        self._note_all(step, _nbytes(inp) // self.size)
        return self._comm.all_to_all(out, inp, step=step)

    def all_to_allv(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int], *, step: str) -> Work:
        for peer, nbytes in enumerate(sent):
            self._note(step, peer, nbytes)
        return self._comm.all_to_allv(out, inp, received, sent, step=step)

    def all_gather(self, out: Array, inp: Array, *, in_place: bool, step: str) -> Work:
        self._note_all(step, _nbytes(inp))
        return self._comm.all_gather(out, inp, in_place=in_place, step=step)

    def reduce_scatter(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        self._note_all(step, _nbytes(out))
        return self._comm.reduce_scatter(out, inp, dtype, op, in_place=in_place, step=step)

    def all_reduce(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        self._note_all(step, _nbytes(inp))
        return self._comm.all_reduce(out, inp, dtype, op, in_place=in_place, step=step)

    def broadcast(self, buffer: Array, root: int, *, step: str) -> Work:
        if self.rank == root:
            self._note_all(step, _nbytes(buffer))
        return self._comm.broadcast(buffer, root, step=step)

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, step: str) -> Work:
        for message in sends:
            self._note(step, message.peer, _nbytes(message.buffer))
        return self._comm.exchange(sends, recvs, step=step)

    def ready(self, name: str, *arguments: Any, **named: Any) -> Ready:
        """Return a call that is noted each time it is made."""
        return functools.partial(getattr(self, name), *arguments, **named)

    def subgroup(self, partition: Sequence[Sequence[int]]) -> RecordingComm:
        """Return the group of `partition` that this rank is in, recorded into the same notes."""
        mine = next(ranks for ranks in partition if self.rank in ranks)
        return RecordingComm(self._comm.subgroup(partition), [self._members[rank] for rank in mine], self._sent)

    def puts(self, plan: PutPlan) -> Puts:
        """Return one-sided writes whose calls are noted."""
        sends = [(plan.step, peer, route.source.stop - route.source.start) for peer, route in enumerate(plan.routes)]
        return _RecordingPuts(self._comm.puts(plan), sends, self._note)

    def row_puts(self, plan: RowPutPlan) -> Puts:
        """Return one-sided writes of rows, whose calls are noted."""
        return _RecordingPuts(self._comm.row_puts(plan), plan.sends, self._note)


class _RecordingPuts:
    def __init__(self, puts: Puts, sends: Sequence[tuple[str, int, int]], note: Any) -> None:
        self._puts, self._sends, self._note = puts, sends, note
        self.close = puts.close

    def ready(self, out: Array, inp: Array) -> Ready:
        call = self._puts.ready(out, inp)

        def noted() -> Work | None:
            for step, peer, nbytes in self._sends:
                self._note(step, peer, nbytes)
            return call()

        return noted


def _nbytes(array: Array) -> int:
    nbytes: int = array.nbytes  # type: ignore[attr-defined]
    return nbytes
