"""drop_reduce_scatter: of partial sums, each rank of a group sums its slices only, sends those, and receivers gather.

The outputs of experts that are cut over a tensor-parallel group must be summed over it. Summing everything everywhere
and then dropping all but a slice (`all_reduce_drop`) moves 2 (tp - 1) / tp of the data inside the group; a
reduce-scatter moves half of that, and its result is the slice that the exchange wants.

With several chunks the reduce-scatter of one is in flight beside the exchange of the one before and the gather of the
one before that: MoNTA's pipeline (`drop_gather_pipelined`) turned round, as the backward pass needs it.

The reduce-scatter is an exchange and local sums, so that slices go straight out of the input. They are summed in the
output, in places that the gather fills at last, so that no scratch is needed; only the own group's slice is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound, steps_in_order
from commbench.algorithms.chunks import unsupported_chunks
from commbench.algorithms.drop_gather import DropGatherBound, chunk_slices, exchange_sends, group_sends, slice_unit
from commbench.collectives.tp_all_to_all import group_block_bytes, tensor_parallel
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Message, Work


class DropReduceScatter(AlgorithmBase):
    name = "drop_reduce_scatter"
    collective = "tp_all_to_all"
    params = {"chunks": (1, "chunks of every block: one is summed while the one before is exchanged")}
    tries = {"chunks": (1, 2, 4)}
    demands = {"tp_input": "partial"}
    concurrent = True

    def unsupported(self, spec: Spec) -> str:
        return unsupported_chunks(group_block_bytes(spec), spec.params["chunks"], slice_unit(spec))

    def steps(self, spec: Spec) -> list[Step]:
        sends: dict[str, tuple[Send, ...]] = {}
        for chunk, slices in enumerate(chunk_slices(spec, spec.params["chunks"])):
            inside = tuple(group_sends(spec, slices, blocks=len(tensor_parallel(spec))))
            between = tuple(exchange_sends(spec, slices))
            sends |= {f"scatter-{chunk}": inside, f"exchange-{chunk}": between, f"gather-{chunk}": inside}
        return steps_in_order(_order(spec.params["chunks"]), sends)

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


def _order(chunks: int) -> list[str]:
    order = ["scatter-0"]
    for chunk in range(chunks):
        order += [WAIT]  # for its scatter
        order += [f"scatter-{chunk + 1}"] if chunk + 1 < chunks else []
        order += [f"sum-{chunk}"]
        order += [WAIT] if chunk > 0 else []  # for the exchange of the chunk before
        order += [f"exchange-{chunk}"]
        order += [WAIT] if chunk > 1 else []  # for the gather of the one before that
        order += [f"gather-{chunk - 1}"] if chunk > 0 else []
    return [*order, WAIT, *([WAIT] if chunks > 1 else []), f"gather-{chunks - 1}"]


class _Bound(DropGatherBound):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        chunks = spec.params["chunks"]
        super().__init__(comm, spec, chunks, _order(chunks))
        self._dtype = spec.dtype

    def actions(self, out: Array, inp: Array) -> Mapping[str, Callable[[], Work | None]]:
        found: dict[str, Callable[[], Work | None]] = {}
        for chunk, slices in enumerate(self._slices):
            mine, spare = slices.of_rank[self._group.rank], slices.of_rank[self._mates[0]]
            found[f"scatter-{chunk}"] = self._scatter(out, inp, chunk)
            found[f"sum-{chunk}"] = self._sum(out, inp, chunk)
            found[f"exchange-{chunk}"] = self._places.ready(
                "exchange",
                [Message(dst, out[self.at(dst, spare)]) for dst in self._others],
                [Message(src, out[self.at(src, mine)]) for src in self._others],
                step=f"exchange-{chunk}",
            )
            found[f"gather-{chunk}"] = self.gather(out, chunk, self._blocks)
        return found

    def _scatter(self, out: Array, inp: Array, chunk: int) -> Callable[[], Work | None]:
        """Send each of the group its slices of the input; its part of this rank's slices goes where its own will."""
        slices = self._slices[chunk].of_rank
        return self._group.ready(
            "exchange",
            [Message(mate, inp[self.at(block, slices[mate])]) for mate in self._mates for block in self._blocks],
            [Message(mate, out[self.at(block, slices[mate])]) for mate in self._mates for block in self._blocks],
            step=f"scatter-{chunk}",
        )

    def _sum(self, out: Array, inp: Array, chunk: int) -> Callable[[], None]:
        """This rank's slices of all blocks, summed in the place of the next rank's; the own block's in its place."""
        slices, comm, dtype = self._slices[chunk].of_rank, self._group, self._dtype
        blocks_in, blocks_out = inp.reshape(len(self._blocks), -1), out.reshape(len(self._blocks), -1)
        mine = slices[comm.rank]
        first, *more = [blocks_out[:, slices[mate]] for mate in self._mates]
        addends = [blocks_in[:, mine], *more]
        own = self._places.rank
        kept, summed = out[self.at(own, mine)], out[self.at(own, slices[self._mates[0]])]

        def add_up() -> None:
            for addend in addends:
                comm.add(first, addend, dtype)
            kept[...] = summed

        return add_up
