"""direct: one copy by the device's copy engine; `both` ways in chunks, through one buffer in the host's memory."""

from __future__ import annotations

import functools

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.algorithms.chunks import UNIT_BYTES, cut
from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Work


class DirectHostCopy(AlgorithmBase):
    name = "direct"
    collective = "host_copy"
    params = {"chunks": (16, "of way=both: parts, of which one comes back while the next one leaves")}
    tries = {"chunks": (4, 16, 64)}

    def unsupported(self, spec: Spec) -> str:
        chunks = spec.params["chunks"]
        return "" if chunks >= 1 else f"chunks={chunks}: there must be at least one"

    def steps(self, spec: Spec) -> list[Step]:
        return []  # nothing goes to another rank

    def scratch_bytes(self, spec: Spec) -> int:
        return spec.size_bytes if spec.arguments["way"] == "both" else 0

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        if spec.arguments["way"] != "both":
            return _Copy(comm)
        return _RoundTrip(comm, spec)


class _Copy(BoundBase):
    capturable = False  # memory of the host's that is not pinned cannot be

    def __init__(self, comm: Comm) -> None:
        self._comm = comm

    def start(self, out: Array, inp: Array) -> Work:
        return self._comm.copy(out, inp)


class _RoundTrip(BoundBase):
    capturable = False

    def __init__(self, comm: Comm, spec: Spec) -> None:
        host = comm.host_buffer(spec.size_bytes, pinned=spec.arguments["host_memory"] == "pinned")
        unit = UNIT_BYTES if spec.size_bytes % UNIT_BYTES == 0 else 1
        parts = [part for part in cut(spec.size_bytes, spec.params["chunks"], unit) if part.start < part.stop]
        self._run = functools.partial(comm.round_trip, host=host, parts=parts)

    def start(self, out: Array, inp: Array) -> Work:
        return self._run(out, inp)
