"""What a log of nccl-tests says twice must agree: a log that contradicts itself is refused, in words.

nccl-tests built without MPI and started by mpirun is the common case: every process is a world of its own with a rank
0, and their lines mix. Read as one world, such a log shows a machine faster than it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from commbench.formats.result import busbw_factor
from commbench.units import gbps

_BYTES = {
    **dict.fromkeys(("int8", "uint8", "char", "fp8_e4m3", "fp8_e5m2", "f8e4m3", "f8e5m2"), 1),
    **dict.fromkeys(("half", "bfloat16", "fp16", "bf16"), 2),
    **dict.fromkeys(("float", "int32", "uint32", "int", "fp32"), 4),
    **dict.fromkeys(("double", "int64", "uint64", "fp64"), 8),
}
# The size is what one rank holds for all (count elements for each), or the vector that ranks share (count elements).
_COUNT_PER_RANK = ("all_to_all", "all_gather", "reduce_scatter", "gather", "scatter")
_COUNT_OF_ALL = ("all_reduce", "broadcast", "reduce", "sendrecv")
_SLACK = 0.02  # of a number that is computed from others
SEPARATE_WORLDS = (
    "nccl-tests built without MPI runs one world in each process, and lines of several worlds mix:"
    " build it with MPI=1, or give each process a log of its own"
)


class ListedRank(NamedTuple):
    """A rank's line: which one it is, and whose process it is in."""

    rank: int
    group: int
    process: str  # host and pid; empty where the log does not know it
    host: str = ""


def repeated_rank(devices: Sequence[ListedRank], new: ListedRank) -> str:
    """Say which earlier line has the number of `new`, or "" where none has."""
    for earlier in devices:
        if earlier.rank == new.rank:
            return f"rank {new.rank} is there twice ({earlier.process or 'first'} and {new.process or 'again'})"
    return ""


def world_problem(devices: Sequence[ListedRank], per_process: int | None) -> str:
    """Say what is wrong with a whole list of ranks, or "": numbers without gaps, as many in a process as it says."""
    ranks = {device.rank for device in devices}
    if missing := sorted(set(range(max(ranks, default=-1) + 1)) - ranks):
        return f"{len(ranks)} ranks are listed up to rank {max(ranks)}: rank {missing[0]} is missing"
    if not per_process:
        return ""
    if len(ranks) % per_process:
        return f"{len(ranks)} ranks are listed, and each process says that it has {per_process}"
    for process, count in Counter(device.process for device in devices if device.process).items():
        if count > per_process:
            return f"{process} is listed with {count} ranks, and each process says that it has {per_process}"
    return ""


def first_devices_problem(ranks: Iterable[int], per_process: int) -> str:
    """Say what is wrong with the ranks that a JSON lists: all of them, or the first one of each process."""
    listed = sorted(ranks)
    if twice := [rank for rank, count in Counter(listed).items() if count > 1]:
        return f"rank {twice[0]} is there twice"
    if listed not in (list(range(len(listed))), list(range(0, len(listed) * per_process, per_process))):
        return f"ranks {', '.join(map(str, listed))} are listed, and each process says that it has {per_process}"
    return ""


def count_problem(collective: str | None, ranks: int | None, size: int, count: int, type_: str) -> str:
    """Say where the size, the count and the type of a row are of another number of ranks than `ranks`, or ""."""
    width = _BYTES.get(type_)
    if not (width and ranks and size and count):
        return ""
    fitting = {"all": size // width == count, "each": size // width // ranks == count}
    if collective in _COUNT_PER_RANK and not fitting["each"]:
        return f"{size} B are {size / width / count:g} x {count} {type_}, so of that many ranks, and there are {ranks}"
    if collective in _COUNT_OF_ALL and not fitting["all"]:
        return f"{size} B are not {count} {type_}, which {collective} has"
    if collective is None and not any(fitting.values()):
        return f"{size} B are neither {count} {type_}, nor as many for each of {ranks} ranks"
    return ""


def bandwidth_problem(
    collective: str | None, ranks: int | None, size: int, time: str | None, algbw: str | None, busbw: str | None
) -> str:
    """Say which of a row's numbers (us, GB/s; as the log has them) contradict each other, or ""."""
    if collective not in _COUNT_PER_RANK + _COUNT_OF_ALL or not size:
        return ""
    if time and algbw and float(time) > 0:
        implied = gbps(size, float(time))
        spread = _rounding(algbw) + implied * min(1.0, _rounding(time) / float(time))
        if abs(implied - float(algbw)) > spread + _SLACK * implied:
            return f"{size} B in {time} us are {implied:.2f} GB/s, and the algbw is {algbw}"
    factor = busbw_factor(collective, ranks) if ranks else None
    if factor is not None and algbw and busbw:
        implied = factor * float(algbw)
        if abs(implied - float(busbw)) > factor * _rounding(algbw) + _rounding(busbw) + _SLACK * implied:
            return f"algbw {algbw} on {ranks} ranks is busbw {implied:.2f}, and {busbw} is given"
    return ""


def _rounding(text: str) -> float:
    """Return one unit of the last digit that is printed: 0.01 of 12.34."""
    mantissa, _, exponent = text.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
