"""counts_first: all_to_allv as a Mixture-of-Experts layer has to do it, from the sender's counts alone.

A rank knows how much it sends to each other, not how much it will get: so counts are exchanged first, read on the host
(on a GPU that stops the stream), and only then the data can go. `direct` knows the counts beforehand; the
difference between the two is what that costs (Tutel, section 3.1, avoids it by padding to a capacity).
"""

from __future__ import annotations

import numpy as np

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.collectives.all_to_allv import AllToAllV
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Work

_COUNT_BYTES = 8


class CountsFirst(AlgorithmBase):
    name = "counts_first"
    collective = "all_to_allv"

    def steps(self, spec: Spec) -> list[Step]:
        ranks = range(spec.ranks)
        counts = tuple(Send(src, dst, _COUNT_BYTES) for src in ranks for dst in ranks if src != dst)
        data = tuple(AllToAllV().messages(spec))
        return [Step(name="counts", sends=counts), Step(name="data", sends=data, after=("counts",))]

    def scratch_bytes(self, spec: Spec) -> int:
        return 2 * spec.ranks * _COUNT_BYTES

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


class _Bound(BoundBase):
    capturable = False

    def __init__(self, comm: Comm, spec: Spec) -> None:
        self._comm = comm
        self._sent: list[int] = AllToAllV().counts(spec)[comm.rank].tolist()
        self._received = comm.empty(comm.size * _COUNT_BYTES)
        self._mine = comm.empty(comm.size * _COUNT_BYTES)
        comm.write(self._mine, np.array(self._sent, dtype=np.int64).view(np.uint8))
        self._exchange_counts = comm.ready("all_to_all", self._received, self._mine, step="counts")

    def start(self, out: Array, inp: Array) -> Work:
        comm = self._comm
        if (counts := self._exchange_counts()) is not None:
            counts.wait()
        received = comm.read(self._received).view(np.int64).tolist()
        return comm.all_to_allv(out, inp, received, self._sent, step="data")

    def close(self) -> None:
        del self._received, self._mine, self._exchange_counts
