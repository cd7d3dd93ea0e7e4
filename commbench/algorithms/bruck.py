"""bruck: log2(n) rounds of larger messages instead of n - 1 small ones.

Bruck, Ho, Kipnis, Upfal, Weathersby: "Efficient Algorithms for All-to-All Communications in Multiport Message-Passing
Systems", IEEE TPDS 8(11), 1997. Block i of the rotated buffer must travel i ranks forward; round k moves all blocks
whose index has bit k set by 2^k. Each byte crosses up to log2(n) links, so this pays for small messages only.
"""

from __future__ import annotations

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Done, Message, Work


def _rounds(ranks: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """(distance, runs [first, last) of block indices that travel) for each round, for any number of ranks."""
    rounds = []
    distance = 1
    while distance < ranks:
        runs = [(i, min(i + distance, ranks)) for i in range(distance, ranks, 2 * distance)]
        rounds.append((distance, runs))
        distance *= 2
    return rounds


class Bruck(AlgorithmBase):
    name = "bruck"
    collective = "all_to_all"

    def steps(self, spec: Spec) -> list[Step]:
        n = spec.ranks
        steps: list[Step] = []
        for distance, runs in _rounds(n):
            nbytes = sum(last - first for first, last in runs) * spec.block_bytes
            sends = tuple(Send(src, (src + distance) % n, nbytes) for src in range(n))
            after = (steps[-1].name,) if steps else ()
            steps.append(Step(name=f"distance-{distance}", sends=sends, after=after))
        return steps

    def scratch_bytes(self, spec: Spec) -> int:
        return spec.size_bytes

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class _Bound(BoundBase):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        self._comm = comm
        self._rounds = _rounds(comm.size)
        self._rotated = comm.empty(spec.size_bytes).reshape(comm.size, -1)

    def start(self, out: Array, inp: Array) -> Work:
        comm, n, rotated = self._comm, self._comm.size, self._rotated
        out_blocks, in_blocks = out.reshape(n, -1), inp.reshape(n, -1)
        # rotated[i] is the block for rank + i.
        rotated[: n - comm.rank] = in_blocks[comm.rank :]
        rotated[n - comm.rank :] = in_blocks[: comm.rank]
        for distance, runs in self._rounds:
            # A round moves at most half of the blocks, so `out`, still unused, holds what is sent and what comes.
            count = sum(last - first for first, last in runs)
            packed, arrived = out_blocks[:count], out_blocks[count : 2 * count]
            _copy_runs(packed, rotated, runs, pack=True)
            to, source = (comm.rank + distance) % n, (comm.rank - distance) % n
            comm.exchange(
                [Message(to, packed.reshape(-1))], [Message(source, arrived.reshape(-1))], step=f"distance-{distance}"
            ).wait()
            _copy_runs(arrived, rotated, runs, pack=False)
        # rotated[i] now is the block from rank - i.
        for i in range(n):
            out_blocks[(comm.rank - i) % n] = rotated[i]
        return Done()

    def close(self) -> None:
        del self._rotated


def _copy_runs(packed: Array, blocks: Array, runs: list[tuple[int, int]], *, pack: bool) -> None:
    at = 0
    for first, last in runs:
        end = at + last - first
        if pack:
            packed[at:end] = blocks[first:last]
        else:
            blocks[first:last] = packed[at:end]
        at = end
