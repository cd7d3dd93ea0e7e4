"""direct: one call of the transport's own all-to-all. The baseline of every comparison."""

from __future__ import annotations

from commbench.algorithms.base import Bound, BoundBase
from commbench.collectives.all_to_all import AllToAll
from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Work


class Direct:
    name = "direct"
    collective = "all_to_all"
    params: dict[str, tuple[int, str]] = {}

    def supports(self, spec: Spec) -> str | None:
        return None

    def steps(self, spec: Spec) -> list[Step]:
        return [Step(name="all", sends=tuple(AllToAll().traffic(spec)))]

    def scratch_bytes(self, spec: Spec) -> int:
        return 0

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm)


class _Bound(BoundBase):
    def __init__(self, comm: Comm) -> None:
        self._comm = comm

    def start(self, out: Array, inp: Array) -> Work:
        return self._comm.all_to_all(out, inp, step="all")
