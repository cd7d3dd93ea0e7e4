"""duplicated: every rank of a tensor-parallel group sends all that it holds, to the rank of its place in each group.

Historical: DeepSpeed before June 2024 (its pull request 5626). The same bytes leave a node once for each rank of the
group; nothing has to be gathered. For messages so small that their number counts, this can still be the fastest.
"""

from __future__ import annotations

from collections.abc import Sequence

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.collectives.tp_all_to_all import expert_parallel, group_block_bytes
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Ready, Work


class Duplicated(AlgorithmBase):
    name = "duplicated"
    collective = "tp_all_to_all"
    demands = {"tp_input": "replicated"}

    def steps(self, spec: Spec) -> list[Step]:
        block = group_block_bytes(spec)
        sends = (Send(s, d, block) for ranks in expert_parallel(spec) for s in ranks for d in ranks if s != d)
        return [Step(name="all", sends=tuple(sends))]

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm.subgroup(expert_parallel(spec)))


class _Bound(BoundBase):
    def __init__(self, places: Comm) -> None:
        self._places = places

    def start(self, out: Array, inp: Array) -> Work:
        return self._places.all_to_all(out, inp, step="all")

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        return [self._places.ready("all_to_all", *pair, step="all") for pair in pairs]
