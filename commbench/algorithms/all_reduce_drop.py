"""all_reduce_drop: partial sums are summed everywhere, then all but a slice is dropped, exchanged and gathered.

Today's practice after experts that are cut over a tensor-parallel group, and what `drop_reduce_scatter` is to beat.
How the library's all-reduce moves the data is its own affair, so the messages of the whole are not declared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound
from commbench.algorithms.chunks import unsupported_chunks
from commbench.algorithms.drop_gather import DropGatherBound, drop_gather_order, slice_unit
from commbench.collectives.tp_all_to_all import group_block_bytes
from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Work


class AllReduceDrop(AlgorithmBase):
    name = "all_reduce_drop"
    collective = "tp_all_to_all"
    demands = {"tp_input": "partial"}

    def unsupported(self, spec: Spec) -> str:
        return unsupported_chunks(group_block_bytes(spec), 1, slice_unit(spec))

    def steps(self, spec: Spec) -> list[Step] | None:
        return None

    def scratch_bytes(self, spec: Spec) -> int:
        return spec.size_bytes

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class _Bound(DropGatherBound):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        super().__init__(comm, spec, 1, ["reduce", WAIT, *drop_gather_order(1)])
        self._dtype = spec.dtype
        self._summed = comm.empty(spec.size_bytes)

    def actions(self, out: Array, inp: Array) -> Mapping[str, Callable[[], Work | None]]:
        reduce = functools.partial(
            self._group.all_reduce, self._summed, inp, self._dtype, "sum", in_place=False, step="reduce"
        )
        return {"reduce": reduce, **super().actions(out, self._summed)}

    def close(self) -> None:
        del self._summed
