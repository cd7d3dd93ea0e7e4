"""What a result of another program is, and the conventions that its readers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from commbench.units import gbps

# Names of element types in nccl-tests and MPI, where they differ from ours.
_DTYPES = {
    "float": "fp32",
    "half": "fp16",
    "bfloat16": "bf16",
    "double": "fp64",
    "int": "int32",
    "char": "int8",
    "MPI_FLOAT": "fp32",
    "MPI_DOUBLE": "fp64",
    "MPI_INT": "int32",
    "MPI_CHAR": "int8",
    "MPI_BYTE": "uint8",
}
_SHARE_SENT = ("all_to_all", "all_to_allv", "all_to_allw", "all_gather", "all_gatherv", "reduce_scatter")
_AT_THE_ROOT = ("gather", "gatherv", "scatter", "scatterv")
_ONCE = ("broadcast", "reduce", "sendrecv", "pairs", "hypercube")
# Names that benchmarks of MPI give to collectives, less separators -> (ours, are its bytes one block for each rank?).
# Their size is one block where the call takes one for each rank, and the whole vector where ranks share one: also in
# reduce_scatter, whose receive counts are shares of it.
MPI_COLLECTIVES = {
    "alltoall": ("all_to_all", True),
    "alltoallv": ("all_to_allv", True),
    "alltoallw": ("all_to_allw", True),
    "allgather": ("all_gather", True),
    "allgatherv": ("all_gatherv", True),
    "gather": ("gather", True),
    "gatherv": ("gatherv", True),
    "scatter": ("scatter", True),
    "scatterv": ("scatterv", True),
    "allreduce": ("all_reduce", False),
    "bcast": ("broadcast", False),
    "broadcast": ("broadcast", False),
    "reduce": ("reduce", False),
    "reducescatter": ("reduce_scatter", False),
    "reducescatterblock": ("reduce_scatter", False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured point. A field is None where the file does not say.

    `size_bytes` is nccl-tests' size column, whatever the file's own convention. `time_us` is in microseconds, the
    bandwidths in GB/s (1e9 bytes per second), as the file shows them, so they are as rounded as it shows them.
    `wrong` counts wrong elements; where a file only says that there are some, it is 1.
    """

    source: str  # the program with its version, and the variant of the test: `nccl-tests 2.19.6`
    collective: str | None  # by our names, where we have one
    ranks: int | None  # of one communicator
    size_bytes: int
    dtype: str | None  # by our names, where we have one
    op: str | None
    root: int | None
    in_place: bool | None
    time_us: float | None
    algbw_gbps: float | None
    busbw_gbps: float | None
    wrong: int | None
    graph: bool | None = None  # whether calls were captured in a CUDA graph
    groups: str = "world"  # other communicators that ran beside it
    overlap: str = "none"
    setting: str = ""  # what else the file says of it, in its words
    per_node: tuple[int, ...] = ()  # ranks on each node; () where the file does not say
    even: bool = False  # of an exchange that may be uneven: whether its blocks are known to be equal

    @property
    def nodes(self) -> int | None:
        return len(self.per_node) or None

    def is_of(
        self, *, collective: str | None, ranks: int | None, in_place: bool | None, groups: str, overlap: str,
        graph: bool | None, arguments: Mapping[str, Any],
    ) -> bool:  # fmt: skip
        """Return whether both are the same call; size and dtype are not looked at.

        What a collective was asked (`arguments`) must not differ, and be of a kind that a result can say. An op, a
        root or a graph that one side does not say may be any.
        """
        known = {"op": self.op, "root": self.root}
        return (
            (self.collective, self.ranks, bool(self.in_place)) == (collective, ranks, bool(in_place))
            and (self.groups, self.overlap) == (groups, overlap)
            and (self.graph is None or graph is None or self.graph == graph)
            and all(name in known and known[name] in (None, value) for name, value in arguments.items())
        )


def dtype_name(name: str) -> str:
    """Our name of an element type; an unknown one keeps its own."""
    return _DTYPES.get(name, name)


def busbw_factor(collective: str, ranks: int) -> float | None:
    """busbw = algbw x this factor (nccl-tests, doc/PERFORMANCE.md); None for a collective without one."""
    if collective == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if collective in _SHARE_SENT + _AT_THE_ROOT:
        return (ranks - 1) / ranks
    return 1.0 if collective in _ONCE else None


def timed(
    *, source: str, collective: str, ranks: int, size_bytes: int, dtype: str | None, time_us: float,
    wrong: int | None, groups: str = "world",
) -> Result:  # fmt: skip
    """Return the result of a program of MPI, which prints a time alone: bandwidths follow from it."""
    algbw = gbps(size_bytes, time_us) if time_us > 0 else None
    factor = busbw_factor(collective, ranks)
    return Result(
        source=source,
        collective=collective,
        ranks=ranks,
        size_bytes=size_bytes,
        dtype=dtype,
        op=None,
        root=None,
        in_place=None,
        time_us=time_us,
        algbw_gbps=algbw,
        busbw_gbps=None if algbw is None or factor is None else algbw * factor,
        wrong=wrong,
        groups=groups,
    )
