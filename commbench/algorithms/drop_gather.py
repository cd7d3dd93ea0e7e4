"""drop_gather: each rank of a tensor-parallel group sends its share of the tokens only, and the receivers gather.

Duplicate token dropping of DeepSpeed-TED (Singh et al., arXiv 2303.06318, section 4), today's practice. The tp ranks
of a group hold the same e blocks. Rank j sends slice j of each block to rank j of the block's group; then the ranks of
each group give each other their slices. Between the groups a rank sends (e - 1) messages of S / (e tp) bytes, tp times
less than without dropping, and inside its group (tp - 1) (e - 1) of the same size.

Nothing is packed: slices go straight out of the input and arrive in their places in the output, as messages of their
own. The block for the own group is there already and is copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound, ProgramBound, steps_in_order
from commbench.algorithms.chunks import UNIT_BYTES, cut, unsupported_chunks
from commbench.collectives.tp_all_to_all import expert_parallel, group_block_bytes, tensor_parallel, tp_of
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Message, Work


class DropGather(AlgorithmBase):
    name = "drop_gather"
    collective = "tp_all_to_all"
    demands = {"tp_input": "replicated"}

    def unsupported(self, spec: Spec) -> str:
        return unsupported_chunks(group_block_bytes(spec), 1, slice_unit(spec))

    def steps(self, spec: Spec) -> list[Step]:
        chunks = spec.params.get("chunks", 1)
        sends: dict[str, tuple[Send, ...]] = {}
        for chunk, slices in enumerate(chunk_slices(spec, chunks)):
            sends[f"exchange-{chunk}"] = tuple(exchange_sends(spec, slices))
            sends[f"gather-{chunk}"] = tuple(group_sends(spec, slices, blocks=len(tensor_parallel(spec)) - 1))
        return steps_in_order(drop_gather_order(chunks), sends)

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return DropGatherBound(comm, spec, spec.params.get("chunks", 1))


def drop_gather_order(chunks: int) -> list[str]:
    """What a rank does one after the other: the exchange of a chunk is in flight beside the gather of the one before.

    Each of the two communicators has one exchange in flight at the most.
    """
    order = ["exchange-0", "keep"]
    for chunk in range(chunks):
        order += [WAIT]  # for its exchange
        order += [f"exchange-{chunk + 1}"] if chunk + 1 < chunks else []
        order += [WAIT] if chunk else []  # for the gather of the chunk before
        order += [f"gather-{chunk}"]
    return order


class Slices(NamedTuple):
    """Where the slices of a chunk lie in a block, by the rank of the tensor-parallel group that carries them."""

    of_rank: tuple[slice, ...]
    nbytes: int  # of each


def slice_unit(spec: Spec) -> int:
    """What the chunks of a block must be multiples of, for their slices to be whole units."""
    return tp_of(spec) * UNIT_BYTES


def chunk_slices(spec: Spec, chunks: int) -> list[Slices]:
    """Which tokens a rank carries is free: a block is a row of chunks, a chunk a row of slices, so all are in place."""
    tp = tp_of(spec)
    found = []
    for piece in cut(group_block_bytes(spec), chunks, slice_unit(spec)):
        nbytes = (piece.stop - piece.start) // tp
        starts = [piece.start + rank * nbytes for rank in range(tp)]
        found.append(Slices(tuple(slice(start, start + nbytes) for start in starts), nbytes))
    return found


def exchange_sends(spec: Spec, slices: Slices) -> Iterator[Send]:
    """The messages between groups: each rank's slice of a block to the rank of its place in the block's group."""
    for ranks in expert_parallel(spec):
        for src in ranks:
            yield from (Send(src, dst, slices.nbytes) for dst in ranks if dst != src)


def group_sends(spec: Spec, slices: Slices, *, blocks: int) -> Iterator[Send]:
    """The messages inside groups where each rank has something for each other of `blocks` blocks."""
    for ranks in tensor_parallel(spec):
        for src in ranks:
            yield from (Send(src, dst, slices.nbytes) for dst in ranks if dst != src for _ in range(blocks))


class DropGatherBound(ProgramBound):
    def __init__(self, comm: Comm, spec: Spec, chunks: int, order: Sequence[str] | None = None) -> None:
        super().__init__(drop_gather_order(chunks) if order is None else order)
        self._slices = chunk_slices(spec, chunks)
        self._block_bytes = group_block_bytes(spec)
        self._group = comm.subgroup(tensor_parallel(spec))  # of this rank
        self._places = comm.subgroup(expert_parallel(spec))  # the ranks of its place in all groups
        self._blocks = range(self._places.size)
        # Round from the next one, so that not everybody sends to the same rank first.
        self._mates = [(self._group.rank + i) % self._group.size for i in range(1, self._group.size)]
        self._others = [(self._places.rank + i) % self._places.size for i in self._blocks[1:]]

    def at(self, block: int, where: slice) -> slice:
        """`where` of a block, in a whole buffer."""
        start = block * self._block_bytes
        return slice(start + where.start, start + where.stop)

    def actions(self, out: Array, inp: Array) -> Mapping[str, Callable[[], Work | None]]:
        own = self.at(self._places.rank, slice(0, self._block_bytes))
        found: dict[str, Callable[[], Work | None]] = {"keep": functools.partial(out[own].__setitem__, ..., inp[own])}
        for chunk, slices in enumerate(self._slices):
            mine = slices.of_rank[self._group.rank]
            found[f"exchange-{chunk}"] = self._places.ready(
                "exchange",
                [Message(dst, inp[self.at(dst, mine)]) for dst in self._others],
                [Message(src, out[self.at(src, mine)]) for src in self._others],
                step=f"exchange-{chunk}",
            )
            found[f"gather-{chunk}"] = self.gather(out, chunk, sorted(self._others))
        return found

    def gather(self, out: Array, chunk: int, blocks: Sequence[int]) -> Callable[[], Work | None]:
        """The own slices of `blocks` to all of the group, theirs into their places."""
        slices = self._slices[chunk].of_rank
        mine = slices[self._group.rank]
        return self._group.ready(
            "exchange",
            [Message(mate, out[self.at(block, mine)]) for mate in self._mates for block in blocks],
            [Message(mate, out[self.at(block, slices[mate])]) for mate in self._mates for block in blocks],
            step=f"gather-{chunk}",
        )
