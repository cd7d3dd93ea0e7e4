"""pairwise: n - 1 rounds; in round i each rank sends to rank + i and receives from rank - i.

The classical exchange for large messages (Thakur, Rabenseifner, Gropp: "Optimization of Collective Communication
Operations in MPICH", 2005, section 4): at any time each rank talks to one peer only, so no receiver is flooded.
`window` rounds form one batch of sends and receives in flight together; window >= n - 1 posts everything at once.
"""

from __future__ import annotations

from commbench.algorithms.base import Bound, BoundBase
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Done, Message, Work


def _batches(spec: Spec) -> list[range]:
    """The rounds (offsets to the peer) of each batch."""
    window = spec.params["window"]
    return [range(first, min(first + window, spec.ranks)) for first in range(1, spec.ranks, window)]


class Pairwise:
    name = "pairwise"
    collective = "all_to_all"
    params = {"window": (1, "rounds of send/recv in flight together")}

    def supports(self, spec: Spec) -> str | None:
        window = spec.params["window"]
        return None if window >= 1 else f"window={window}: at least one round must be in flight"

    def steps(self, spec: Spec) -> list[Step]:
        n = spec.ranks
        steps: list[Step] = []
        for rounds in _batches(spec):
            sends = tuple(Send(src, (src + i) % n, spec.block_bytes) for i in rounds for src in range(n))
            after = (steps[-1].name,) if steps else ()
            steps.append(Step(name=f"batch-{rounds.start}", sends=sends, after=after))
        return steps

    def scratch_bytes(self, spec: Spec) -> int:
        return 0

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class _Bound(BoundBase):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        n = comm.size
        self._comm = comm
        self._ranks = n
        self._batches = [
            (f"batch-{rounds.start}", [((comm.rank + i) % n, (comm.rank - i) % n) for i in rounds])
            for rounds in _batches(spec)
        ]

    def start(self, out: Array, inp: Array) -> Work:
        comm = self._comm
        out_blocks, in_blocks = out.reshape(self._ranks, -1), inp.reshape(self._ranks, -1)
        work: Work = Done()
        for step, peers in self._batches:
            work.wait()
            sends = [Message(to, in_blocks[to]) for to, _ in peers]
            recvs = [Message(source, out_blocks[source]) for _, source in peers]
            work = comm.exchange(sends, recvs, step=step)
        out_blocks[comm.rank] = in_blocks[comm.rank]
        return work
