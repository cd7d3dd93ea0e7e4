"""What a trace says of each exchange: how often, how large, how long, and what of it the program waits for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from commbench.record.trace import ProgramTrace, TracedCalls
from commbench.record.ways import layout_of, several_ways

Matrix = npt.NDArray[np.int64]
_ON_GPU = "nccl"  # the transport whose waits are those of a stream


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMatrix:
    """What each rank of a group sent to each in one uneven exchange, and how many exchanges it stands for."""

    group: int
    site: str
    dtype: str
    matrix: Matrix
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedExchange:
    """Calls that people would call one exchange: one collective from one line, in groups that are alike.

    Times are microseconds a step (of the whole program where it has no steps), means over the ranks that take part;
    None where nobody could see them.
    """

    collective: str
    site: str
    async_op: bool
    dtype: str
    ranks: int  # in one group
    groups: int
    calls: float  # a step
    nbytes: float  # a call, mean
    least_bytes: int
    most_bytes: int
    time_us: float | None  # from start to end
    exposed_us: float | None  # that the program stood still
    late_us: float | None  # of that, what the other ranks of a group waited for the last one
    skew: float | None  # of uneven ones: the busiest rank over the mean
    tunable: bool = False  # whether a group on these nodes can do it in several ways


def exchanges(trace: ProgramTrace) -> list[TracedExchange]:
    """Return all exchanges of a step, those first that are waited for most; of the whole run where it has no steps."""
    steady = trace.step_us() is not None
    kinds: dict[tuple[object, ...], list[TracedCalls]] = defaultdict(list)
    for one in trace.calls:
        if not steady or one.steady_count:
            size = len(trace.groups[one.group].ranks)
            kinds[one.collective, one.site, one.async_op, one.dtype, size].append(one)
    matrices = list(sent_matrices(trace))
    found = [_exchange(trace, lines, matrices, steady=steady) for lines in kinds.values()]
    return sorted(found, key=lambda one: (-(one.exposed_us or 0), -(one.time_us or 0), -one.calls * one.nbytes))


def _exchange(
    trace: ProgramTrace, lines: Sequence[TracedCalls], matrices: Sequence[SentMatrix], *, steady: bool
) -> TracedExchange:
    first = lines[0]
    steps = {one.rank: max(1, trace.step_count(one.rank) - 1) if steady else 1 for one in lines}
    calls: dict[int, float] = defaultdict(float)
    exposed: dict[int, float | None] = defaultdict(float)
    times: dict[int, float | None] = defaultdict(float)
    for one in lines:
        count, host, device, wait = _times(one, steady=steady)
        stood = wait if wait is None or trace.transport == _ON_GPU else host + wait
        took = device if device is not None else None if first.async_op or trace.transport == _ON_GPU else stood
        calls[one.rank] += count / steps[one.rank]
        exposed[one.rank] = _sum(exposed[one.rank], stood, steps[one.rank])
        times[one.rank] = _sum(times[one.rank], took, steps[one.rank])
    mine = {one.group for one in lines}
    seen = [one for one in matrices if one.group in mine and one.site == first.site and one.dtype == first.dtype]
    total = sum(_times(one, steady=steady)[0] for one in lines)
    return TracedExchange(
        collective=first.collective,
        site=first.site,
        async_op=first.async_op,
        dtype=first.dtype,
        ranks=len(trace.groups[first.group].ranks),
        groups=len(mine),
        calls=fmean(calls.values()),
        nbytes=sum(one.nbytes * _times(one, steady=steady)[0] for one in lines) / total,
        least_bytes=min(one.nbytes for one in lines),
        most_bytes=max(one.nbytes for one in lines),
        time_us=_mean(times),
        exposed_us=_mean(exposed),
        late_us=_late(trace, lines, exposed),
        skew=_skew(seen) if first.collective == "all_to_allv" else None,
        tunable=several_ways(first.collective, layout_of(trace, trace.groups[first.group].ranks)),
    )


def _times(one: TracedCalls, *, steady: bool) -> tuple[int, float, float | None, float | None]:
    """Return count, host, device and wait of the calls after the first step, or of all."""
    if not steady:
        return one.count, one.host_us, one.device_us, one.wait_us
    device = None if one.device_us is None else max(0.0, one.device_us - (one.setup_device_us or 0.0))
    wait = None if one.wait_us is None else max(0.0, one.wait_us - (one.setup_wait_us or 0.0))
    return one.steady_count, max(0.0, one.host_us - one.setup_host_us), device, wait


def _sum(known: float | None, more: float | None, steps: int) -> float | None:
    return None if known is None or more is None else known + more / steps


def _mean(values: dict[int, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _late(trace: ProgramTrace, lines: Sequence[TracedCalls], exposed: dict[int, float | None]) -> float | None:
    """Return the mean over ranks of what one waits longer than the one of its group that waits least."""
    late = []
    for group in {one.group for one in lines}:
        waits = [exposed.get(rank) for rank in trace.groups[group].ranks if rank in exposed]
        known = [wait for wait in waits if wait is not None]
        late += [wait - min(known) for wait in known]
    return fmean(late) if late else None


def sent_matrices(trace: ProgramTrace) -> Iterator[SentMatrix]:
    """Yield what was sent in those uneven exchanges that every rank of a group has kept, and agrees upon.

    Ranks that call from different lines number their exchanges differently: what they kept is then not of one exchange.
    """
    kept: dict[tuple[int, str, str], dict[int, dict[int, TracedCalls]]] = defaultdict(lambda: defaultdict(dict))
    counts: dict[tuple[int, str, str], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for one in trace.calls:
        if one.collective == "all_to_allv":
            counts[one.group, one.site, one.dtype][one.rank] += one.count
        for number in one.sequences or ():
            kept[one.group, one.site, one.dtype][number][one.rank] = one
    for (group, site, dtype), calls in kept.items():
        members = trace.groups[group].ranks
        whole = sorted(number for number, lines in calls.items() if lines.keys() == {*members})
        if not whole:
            continue
        ends = [*whole[1:], max(counts[group, site, dtype].values(), default=0)]
        for number, end in zip(whole, ends, strict=True):
            matrix, arrived = (
                np.array([getattr(calls[number][rank], name) for rank in members], dtype=np.int64)
                for name in ("sent", "received")
            )
            if not np.array_equal(matrix, arrived.T):
                continue
            yield SentMatrix(group=group, site=site, dtype=dtype, matrix=matrix, weight=max(1, end - number))


def _skew(matrices: Sequence[SentMatrix]) -> float | None:
    """Return the most that a rank sends or receives over the mean, as a mean over exchanges."""
    known = [one for one in matrices if one.matrix.any()]
    if not known:
        return None
    ratios = [max(one.matrix.sum(axis=0).max(), one.matrix.sum(axis=1).max()) / _mean_sent(one.matrix) for one in known]
    return float(np.average(ratios, weights=[one.weight for one in known]))


def _mean_sent(matrix: Matrix) -> float:
    return float(matrix.sum()) / len(matrix)
