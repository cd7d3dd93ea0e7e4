"""hypercube: log2(n) rounds; in round k each rank exchanges half of its blocks with the rank across bit k.

Few messages, and each byte travels log2(n) / 2 times: good where a message costs more than its bytes.
"""

from __future__ import annotations

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Done, Message, Work


class Hypercube(AlgorithmBase):
    """All-to-all by dimensions of a hypercube."""

    name = "hypercube"
    collective = "all_to_all"

    def unsupported(self, spec: Spec) -> str:
        n = spec.ranks
        return f"{n} ranks: hypercube needs a power of two" if n & (n - 1) else ""

    def steps(self, spec: Spec) -> list[Step]:
        steps: list[Step] = []
        for k in range(spec.ranks.bit_length() - 1):
            sends = tuple(Send(src, src ^ (1 << k), spec.size_bytes // 2) for src in range(spec.ranks))
            after = (steps[-1].name,) if steps else ()
            steps.append(Step(name=f"round-{k}", sends=sends, after=after))
        return steps

    def scratch_bytes(self, spec: Spec) -> int:
        return spec.size_bytes

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class _Bound(BoundBase):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        self._comm, self._block = comm, spec.block_bytes
        self._sent, self._arrived = comm.empty(spec.size_bytes // 2), comm.empty(spec.size_bytes // 2)

    def start(self, out: Array, inp: Array) -> Work:
        me = self._comm.rank
        out[:] = inp  # slot s: first the block for rank s, in the end the block of rank s
        for k in range(self._comm.size.bit_length() - 1):
            bit = 1 << k
            slots = out.reshape(-1, 2, bit, self._block)  # the middle axis is bit k of the slot's number
            theirs = 1 - (me >> k & 1)
            self._sent.reshape(-1, bit, self._block)[:] = slots[:, theirs]
            work = self._comm.exchange(
                [Message(me ^ bit, self._sent)], [Message(me ^ bit, self._arrived)], step=f"round-{k}"
            )
            work.wait()
            slots[:, theirs] = self._arrived.reshape(-1, bit, self._block)
        return Done()
