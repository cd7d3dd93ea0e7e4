"""ImportedCall: one call of a file, and torch's words for collectives and dtypes in commbench's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from commbench.record.trace import TracedStep

# torch's names, as `record_param_comms` and the operators of c10d have them.
_COLLECTIVES = {
    "allreduce": "all_reduce", "allreduce_coalesced": "all_reduce", "broadcast_oop": "broadcast",
    "reduce_oop": "reduce", "allgather": "all_gather", "all_gather": "all_gather", "allgather_base": "all_gather",
    "allgather_coalesced": "all_gather", "allgather_into_tensor_coalesced": "all_gather",
    "all_gather_into_tensor_coalesced": "all_gather", "reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter", "alltoall": "all_to_all", "alltoall_base": "all_to_all",
    "all_to_allv": "all_to_all", "recv_any_source": "recv",
}  # fmt: skip
_NO_CALLS = frozenset({"wait", "init", "startcoalesced", "endcoalesced", "monitored_barrier"})
# Both C++'s and torch's names of dtypes: ours, and bytes of an element.
_DTYPES = {
    "float": ("fp32", 4), "half": ("fp16", 2), "bfloat16": ("bf16", 2), "double": ("float64", 8), "bool": ("bool", 1),
    "byte": ("uint8", 1), "unsigned char": ("uint8", 1), "char": ("int8", 1), "signed char": ("int8", 1),
    "short": ("int16", 2), "int": ("int32", 4), "long": ("int64", 8), "long int": ("int64", 8),
    "complexfloat": ("complex64", 8), "complexdouble": ("complex128", 16),
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class ImportedCall:
    """One call. Times are microseconds; None: the file does not tell."""

    collective: str
    dtype: str
    nbytes: int
    ranks: tuple[int, ...]  # of its group
    group_name: str
    sent: tuple[int, ...] | None = None  # bytes
    received: tuple[int, ...] | None = None
    asynchronous: bool = False
    began_us: float = 0.0
    host_us: float = 0.0
    wait_us: float | None = None
    device_us: float | None = None


@dataclass(slots=True, kw_only=True)
class ImportedRank:
    """What one file says of one rank. rank, ranks: None where it does not say."""

    kind: str  # which program has written it
    rank: int | None
    ranks: int | None
    host: str = ""
    backend: str = ""
    gpu: str = ""
    calls: list[ImportedCall] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)  # when each began, and how long it took
    notes: list[str] = field(default_factory=list)  # what could not be told

    def traced_steps(self, rank: int) -> list[TracedStep]:
        """Return its steps, from 1: the profiler's first step is no first step of the program."""
        return [TracedStep(rank=rank, step=number, duration_us=us) for number, (_, us) in enumerate(self.steps, 1)]


def collective_of(name: str) -> str:
    """Return commbench's word for a collective, torch's where there is none; "" of what is no call."""
    plain = name.lower().removeprefix("nccl:").strip("_")
    return "" if plain in _NO_CALLS or not plain.isidentifier() else _COLLECTIVES.get(plain, plain)


def dtype_of(name: str) -> tuple[str, int] | None:
    """Return our word for a dtype and the bytes of an element; None for one that nobody knows."""
    plain = name.removeprefix("c10::").removeprefix("at::").lower()
    if plain.startswith("float8") and plain.isidentifier():
        return plain, 1
    return _DTYPES.get(plain)


def whole_numbers(value: Any) -> list[int] | None:
    """Return a list of whole numbers, from its text too; None where it was cut (`..`), or is none."""
    if isinstance(value, str):
        if not re.fullmatch(r"\[[\d\s,]*\]", value.strip()):
            return None
        value = [int(part) for part in re.findall(r"\d+", value)]
    if not isinstance(value, list) or not all(isinstance(one, int) and one >= 0 for one in value):
        return None
    return value


def in_bytes(splits: Sequence[int] | None, elements: int, itemsize: int, size: int) -> tuple[int, ...] | None:
    """Return splits in bytes. torch gives them in rows of the tensor; none at all means equal ones.

    None where there are not as many as ranks, or where rows are not equal.
    """
    if splits is not None and not splits:
        splits = [1] * size if elements else [0] * size
    if splits is None or len(splits) != size:
        return None
    rows = sum(splits)
    if not rows:
        return (0,) * size if not elements else None
    return None if elements % rows else tuple(one * (elements // rows) * itemsize for one in splits)


def elements_of(shape: Any) -> int:
    """Return the elements of a tensor of this shape, or of all of a list of shapes."""
    if not isinstance(shape, list):
        return 0
    if all(isinstance(one, int) for one in shape):
        return math.prod(shape)
    return sum(elements_of(one) for one in shape)


class Groups:
    """The process groups that a file declares, by name."""

    def __init__(self) -> None:
        self.ranks: dict[str, tuple[int, ...]] = {}
        self.names: dict[str, str] = {}  # as the program gave them

    def declare(self, config: Any) -> None:
        """Take over what torch says of its groups: of distributedInfo, or of `process_group:init`."""
        for one in config if isinstance(config, list) else ():
            if not isinstance(one, Mapping):
                continue
            name, size = str(one.get("pg_name", "")), one.get("pg_size", one.get("group_size"))
            ranks = whole_numbers(one.get("ranks", []))
            if not ranks and isinstance(size, int):  # all ranks
                ranks = list(range(size))
            if ranks and (not isinstance(size, int) or len(ranks) == size):
                self.ranks[name] = tuple(sorted(ranks))
            self.names[name] = plain_name(str(one.get("pg_desc", "")))

    def of_call(self, name: str, listed: Any, size: Any, start: Any, stride: Any) -> tuple[int, ...] | None:
        """Return the ranks of a call's group; None where they cannot be told."""
        ranks = whole_numbers(listed)
        if ranks and (not isinstance(size, int) or len(ranks) == size):
            return tuple(sorted(ranks))
        if name in self.ranks and size in (None, len(self.ranks[name])):
            return self.ranks[name]
        known = all(isinstance(one, int) for one in (size, start, stride))
        if known and 0 < size <= 100_000 and start >= 0 and stride > 0:
            return tuple(range(start, start + size * stride, stride))
        return None

    def of_size(self, size: int | None) -> tuple[int, ...] | None:
        """Return the only group of this size, else the largest one: what a call is in that does not name its group."""
        found = {*self.ranks.values()}
        fitting = {ranks for ranks in found if size is None or len(ranks) == size}
        if size is not None and len(fitting) == 1:
            return fitting.pop()
        largest = max(found, key=len, default=None)
        return largest if largest is not None and size in (None, len(largest)) else None


def plain_name(description: str) -> str:
    """Return a group's name; "" where torch has given it one because the program has not."""
    return "" if description in ("undefined", "default_pg") else description[:200]


def build(
    name: str,
    dtype: str,
    elements: tuple[int, int],
    splits: tuple[Any, Any],
    ranks: tuple[int, ...],
    group_name: str,
) -> ImportedCall | str:
    """Return a call of torch's name for a collective; in words why not, where it cannot be told.

    `elements`: that go in, and out, of this rank. `splits`: of these, by rank, as torch has them; `[]`: equal ones.
    """
    collective = collective_of(name)
    known = dtype_of(dtype)
    if known is None and any(elements):
        return f"{collective} of dtype {dtype[:40]!r}"
    ours, itemsize = known or ("none", 0)
    if collective == "barrier":
        ours, itemsize = "none", 0
    call = ImportedCall(
        collective=collective,
        dtype=ours,
        nbytes=max(elements) * itemsize,
        ranks=ranks,
        group_name=group_name,
    )
    lists = [whole_numbers(one) for one in splits]
    if collective == "all_to_all" and lists != [[], []]:
        call.collective = "all_to_allv"
        sent, received = (in_bytes(one, n, itemsize, len(ranks)) for one, n in zip(lists, elements, strict=True))
        if sent is not None and received is not None:
            call.sent, call.received = sent, received
    return call
