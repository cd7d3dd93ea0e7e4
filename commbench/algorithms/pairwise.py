"""pairwise: n - 1 rounds; in round i each rank sends to rank + i and receives from rank - i.

The classical exchange for large messages (Thakur, Rabenseifner, Gropp: "Optimization of Collective Communication
Operations in MPICH", 2005, section 4): at any time each rank talks to one peer only, so no receiver is flooded.
`window` rounds form one batch of sends and receives in flight together; window >= n - 1 posts everything at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase, CountsInside
from commbench.algorithms.chunks import slices
from commbench.algorithms.counts_inside import WORD, call_size, numbers_of, packed
from commbench.collectives.all_to_allv import AllToAllV
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Done, Message, Work


class Pairwise(AlgorithmBase):
    """Exchange equal blocks with one peer a round."""

    name = "pairwise"
    collective = "all_to_all"
    params = {"window": (1, "rounds of send/recv in flight together")}
    tries = {"window": (1, 2, 4)}

    def unsupported(self, spec: Spec) -> str:
        window = spec.params["window"]
        return "" if window >= 1 else f"window={window}: at least one round must be in flight"

    def steps(self, spec: Spec) -> list[Step]:
        n = spec.ranks
        matrix = self._matrix(spec)
        steps: list[Step] = []
        for rounds in _batches(spec):
            pairs = [(src, (src + i) % n) for i in rounds for src in range(n)]
            sends = tuple(Send(src, dst, matrix[src][dst]) for src, dst in pairs if matrix[src][dst])
            after = (steps[-1].name,) if steps else ()
            steps.append(Step(name=f"batch-{rounds.start}", sends=sends, after=after))
        return steps

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec, self._matrix(spec))

    def _matrix(self, spec: Spec) -> list[list[int]]:
        """Bytes from rank i to rank j."""
        return [[spec.block_bytes] * spec.ranks] * spec.ranks


class _Inside:
    """`pairwise`, whose messages have a size in front."""

    def __init__(self, comm: Comm, spec: Spec) -> None:
        self._comm, self._batches = comm, _batches(spec)

    def run(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int]) -> int:
        comm, n, me = self._comm, self._comm.size, self._comm.rank
        at_out, at_in = slices(received), slices(sent)
        mine = size = call_size(received, sent)
        out[at_out[me]] = inp[at_in[me]]
        for rounds in self._batches:
            sends = [Message(to, packed(comm, [mine], [inp[at_in[to]]])) for to in ((me + i) % n for i in rounds)]
            recvs = [Message(of, comm.empty(WORD + received[of])) for of in ((me - i) % n for i in rounds)]
            comm.exchange(sends, recvs, step=f"batch-{rounds.start}").wait()
            for source, message in recvs:
                size = max(size, *numbers_of(comm, message, 1))
                out[at_out[source]] = message[WORD:]
        return size


class PairwiseV(Pairwise):
    """Exchange unequal blocks with one peer a round; nothing is sent to whom there is nothing to send."""

    collective = "all_to_allv"
    counts_inside: type[CountsInside] | None = _Inside

    def _matrix(self, spec: Spec) -> list[list[int]]:
        matrix: list[list[int]] = AllToAllV().counts(spec).tolist()
        return matrix


def _batches(spec: Spec) -> list[range]:
    """The rounds (offsets to the peer) of each batch."""
    window = spec.params["window"]
    return [range(first, min(first + window, spec.ranks)) for first in range(1, spec.ranks, window)]


class _Bound(BoundBase):
    def __init__(self, comm: Comm, spec: Spec, matrix: list[list[int]]) -> None:
        n, me = comm.size, comm.rank
        self._comm = comm
        sent, received = matrix[me], [row[me] for row in matrix]
        at_input, at_output = slices(sent), slices(received)
        self._own = at_output[me], at_input[me]
        self._batches = []
        for rounds in _batches(spec):
            to = [((me + i) % n, at_input[(me + i) % n]) for i in rounds if sent[(me + i) % n]]
            source = [((me - i) % n, at_output[(me - i) % n]) for i in rounds if received[(me - i) % n]]
            self._batches.append((f"batch-{rounds.start}", to, source))

    def start(self, out: Array, inp: Array) -> Work:
        comm = self._comm
        work: Work = Done()
        for step, to, source in self._batches:
            work.wait()
            sends = [Message(peer, inp[where]) for peer, where in to]
            recvs = [Message(peer, out[where]) for peer, where in source]
            work = comm.exchange(sends, recvs, step=step)
        at_output, at_input = self._own
        out[at_output] = inp[at_input]
        return work
