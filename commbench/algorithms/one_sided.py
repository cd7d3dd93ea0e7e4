"""symm_store, symm_copy_engine: every rank writes its blocks into the outputs of the others, with nobody receiving.

For ranks that reach each other's memory: GPUs of one host. The output must be symmetric memory.

symm_store        threads of the GPU store: one kernel, with a handshake before and after. Ranks that send no more than
                  `packet_bytes` do so in packets instead, which need none (the LL protocol of NCCL, one-sided).
symm_copy_engine  the copy engines move the blocks while all multiprocessors compute; the own block is copied meanwhile,
                  by a copy engine or by a few multiprocessors.

A rank is written to only after it has entered the call, as until then its output may still be read. The call is over
when all that is sent to it has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from commbench_kernels import one_sided, scratch

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.algorithms.chunks import slices
from commbench.collectives.all_to_all import AllToAll
from commbench.collectives.all_to_allv import AllToAllV
from commbench.collectives.splits import Matrix
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Done, PutPlan, Ready, Route, Work


class _OneSided(AlgorithmBase):
    one_sided = True
    collective = "all_to_all"

    def unsupported(self, spec: Spec) -> str:
        if spec.layout.nodes != 1:
            return "ranks write into each other's memory, so all of them must be on one node"
        if spec.buffers != "symmetric":
            return "others write into the output: it needs buffers=symmetric"
        return ""

    def steps(self, spec: Spec) -> list[Step]:
        return [Step(name="all", sends=tuple(self._messages(spec)))]

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec, self._engine(spec), self._shape(spec), self._matrix(spec), self.scratch_bytes(spec))

    def multiprocessors(self, spec: Spec) -> int:
        return self._shape(spec)[0]

    def _engine(self, spec: Spec) -> str:
        raise NotImplementedError

    def _shape(self, spec: Spec) -> tuple[int, int]:
        """Thread blocks, and threads in each."""
        raise NotImplementedError

    def _messages(self, spec: Spec) -> list[Send]:
        return AllToAll().messages(spec)

    def _matrix(self, spec: Spec) -> Matrix:
        """Bytes from rank i to rank j."""
        return np.full((spec.ranks, spec.ranks), spec.block_bytes, dtype=np.int64)


class _Uneven(_OneSided):
    collective = "all_to_allv"

    def _messages(self, spec: Spec) -> list[Send]:
        return AllToAllV().messages(spec)

    def _matrix(self, spec: Spec) -> Matrix:
        return AllToAllV().counts(spec)


class SymmStore(_OneSided):
    name = "symm_store"
    params = {
        "ctas": (0, "thread blocks of a one-sided kernel, rounded up to a multiple of the ranks; 0: by the size"),
        "packet_bytes": (
            262144,
            "ranks that send no more than this to all others do so in packets, without handshakes",
        ),
    }
    tries = {"ctas": (0, 8, 32)}

    def unsupported(self, spec: Spec) -> str:
        if not 0 <= spec.params["ctas"] <= scratch.BLOCKS:
            return f"ctas={spec.params['ctas']}: 1 to {scratch.BLOCKS}, or 0 to choose by the size"
        return super().unsupported(spec)

    def scratch_bytes(self, spec: Spec) -> int:
        flags = scratch.flag_bytes(spec.ranks)
        if self._engine(spec) != "packets":
            return flags
        blocks, threads = self._shape(spec)
        slot = scratch.slot_bytes(int(self._matrix(spec).max()), blocks, threads)
        return flags + scratch.packet_bytes(spec.ranks, slot, blocks)

    def _engine(self, spec: Spec) -> str:
        matrix = self._matrix(spec)
        most = int((matrix.sum(axis=1) - matrix.diagonal()).max())
        return "packets" if most <= spec.params["packet_bytes"] else "store"

    def _shape(self, spec: Spec) -> tuple[int, int]:
        largest, ctas = int(self._matrix(spec).max()), spec.params["ctas"]
        if self._engine(spec) == "packets":
            return ctas or one_sided.packet_blocks(largest), one_sided.THREADS
        return one_sided.store_shape(spec.ranks, largest, ctas)


class SymmStoreV(_Uneven, SymmStore):
    pass


class SymmCopyEngine(_OneSided):
    name = "symm_copy_engine"
    params = {
        "memops": (1, "1: ranks meet by stream memory operations, which need no multiprocessor; 0: by a kernel"),
        "own_ctas": (0, "thread blocks that copy the own block; 0: a copy engine does"),
    }

    def unsupported(self, spec: Spec) -> str:
        if spec.params["memops"] not in (0, 1):
            return f"memops={spec.params['memops']}: 0 or 1"
        if not 0 <= spec.params["own_ctas"] <= scratch.BLOCKS:
            return f"own_ctas={spec.params['own_ctas']}: up to {scratch.BLOCKS}, or 0 for a copy engine"
        return super().unsupported(spec)

    def scratch_bytes(self, spec: Spec) -> int:
        return scratch.flag_bytes(spec.ranks)

    def _engine(self, spec: Spec) -> str:
        return "copies"

    def _shape(self, spec: Spec) -> tuple[int, int]:
        return spec.params["own_ctas"], one_sided.THREADS


class SymmCopyEngineV(_Uneven, SymmCopyEngine):
    pass


class _Bound(BoundBase):
    def __init__(
        self, comm: Comm, spec: Spec, engine: str, shape: tuple[int, int], matrix: Matrix, scratch_bytes: int
    ) -> None:
        rows = matrix.tolist()
        me = comm.rank
        sources = slices(rows[me])
        arrivals = slices([row[me] for row in rows])
        targets = [slices([row[peer] for row in rows])[me] for peer in range(comm.size)]
        routes = [Route(*parts) for parts in zip(sources, targets, arrivals, strict=True)]
        plan = PutPlan(
            engine=engine,
            routes=routes,
            largest=int(matrix.max()),
            ctas=shape[0],
            threads=shape[1],
            params=spec.params,
            scratch_bytes=scratch_bytes,
            step="all",
        )
        self._puts = comm.puts(plan)

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        return [self._puts.ready(out, inp) for out, inp in pairs]

    def start(self, out: Array, inp: Array) -> Work:
        return self._puts.ready(out, inp)() or Done()

    def close(self) -> None:
        self._puts.close()
