"""The one timing loop. Times only: bandwidth and intervals are computed from what it returns.

isolated   one call is one sample: barrier, mark, call, mark. The headline is the maximum over ranks.
pipelined  n calls back to back between two marks, one synchronisation, divided by n: what nccl-tests does by default.

Ranks vote between batches of samples, never inside a timed region: all see all samples and decide alike.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from commbench import stats
from commbench.algorithms.base import Bound
from commbench.records import Policy
from commbench.stats import Floats
from commbench.transports.base import Array, Transport

Pair = tuple[Array, Array]  # output, input

PIPELINED_CALLS = 20  # nccl-tests' -n
PIPELINED_SAMPLE_S = 0.25  # one pipelined sample shall not take longer, if at least 2 calls fit
FEWEST_SAMPLES = 3  # even where the cap is spent
BEAT_S = 5.0  # a batch shall end by then, so that a slow case is told from a hung one


@dataclass(frozen=True, slots=True)
class Timing:
    """All samples of one measurement, microseconds; rows are samples, columns are ranks."""

    warmup_us: Floats
    time_us: Floats
    host_us: Floats  # the calling thread's time in `start`, before it waits
    calls_per_sample: int
    stop_reason: str  # "precision", "samples", "cap" or "iters"
    elapsed_s: float

    @property
    def slowest_us(self) -> Floats:
        """Per sample, the maximum over ranks."""
        slowest: Floats = self.time_us.max(axis=1)
        return slowest


def take(
    transport: Transport, bound: Bound, pairs: Sequence[Pair], first: int, count: int, calls: int
) -> tuple[list[float], list[float]]:
    """`count` samples of `calls` calls each, on this rank: (times, host times) in microseconds per call.

    `first` numbers the first call, so that rotated buffers go on where the last batch stopped.
    """
    marks: list[tuple[object, object]] = []
    host: list[float] = []
    barrier, mark, clock, start = transport.barrier, transport.mark, transport.host_us, bound.start
    synchronize, n = transport.synchronize, len(pairs)
    call = first
    for _ in range(count):
        barrier()
        if calls == 1:
            out, inp = pairs[call % n]
            begin = mark()
            enter = clock()
            work = start(out, inp)
            leave = clock()
            work.wait()
        else:
            begin = mark()
            enter = clock()
            for i in range(call, call + calls):
                out, inp = pairs[i % n]
                start(out, inp).wait()
            leave = clock()
            synchronize()
        end = mark()
        call += calls
        marks.append((begin, end))
        host.append((leave - enter) / calls)
    synchronize()
    return [transport.between_us(begin, end) / calls for begin, end in marks], host


def measure(
    transport: Transport, bound: Bound, pairs: Sequence[Pair], policy: Policy, *, mode: str, progress: Progress
) -> Timing:
    """Warm up, then sample until the median is known, the samples or the seconds run out. Collective."""
    collecting = gc.isenabled()
    gc.disable()  # a collection inside a sample would be measured
    try:
        return _measure(transport, bound, pairs, policy, mode, progress)
    finally:
        if collecting:
            gc.enable()


class Progress:
    """Told after each batch; the worker's heartbeat."""

    def beat(self) -> None:
        return None


def _measure(
    transport: Transport, bound: Bound, pairs: Sequence[Pair], policy: Policy, mode: str, progress: Progress
) -> Timing:
    started = transport.host_us()
    warmup: list[list[float]] = []
    times: list[list[float]] = []
    hosts: list[list[float]] = []
    elapsed_us = 0.0
    called = 0

    def batch(count: int, calls: int, into: list[list[float]]) -> None:
        nonlocal elapsed_us, called
        mine, host = take(transport, bound, pairs, called, count, calls)
        called += count * calls
        # One vote: all samples of all ranks, and the longest elapsed time, so that every rank decides alike.
        votes = transport.all_gather([transport.host_us() - started, *mine, *host])
        elapsed_us = max(vote[0] for vote in votes)
        into.extend([vote[1 + i] for vote in votes] for i in range(count))
        if into is times:
            hosts.extend([vote[1 + count + i] for vote in votes] for i in range(count))
        progress.beat()

    cap_us = math.inf if policy.iters else policy.cap_s * 1e6
    # The first warm-up tells how long a call takes; the rest may use a quarter of the cap.
    if policy.warmup:
        batch(1, 1, warmup)
        rest = policy.warmup - 1
        if elapsed_us * rest > cap_us / 4:
            rest = int(cap_us / 4 / elapsed_us)
        if rest:
            batch(rest, 1, warmup)
    calls = 1
    per_sample_us = elapsed_us / max(1, len(warmup))
    if mode == "pipelined":
        if not warmup:
            batch(1, 1, warmup)
        call_us = max(min(max(row) for row in warmup), 1e-3)
        calls = max(2, min(PIPELINED_CALLS, int(PIPELINED_SAMPLE_S * 1e6 / call_us)))
        per_sample_us = call_us * calls

    reason = ""
    growth = 0.0  # of the number of samples, in the next batch
    slowest: list[float] = []
    while not reason:
        # Batches aim at the number of samples that the precision seems to need, so that votes cost little beside the
        # samples. None runs far past the cap, nor so long that nothing is heard of it.
        have = len(times)
        count = policy.iters - have if policy.iters else max(policy.samples_min - have, int(have * growth))
        if per_sample_us > 0:
            affordable = int(min(cap_us - elapsed_us, BEAT_S * 1e6) / per_sample_us)
            count = min(count, max(affordable, FEWEST_SAMPLES - have))
        count = max(1, count if policy.iters else min(count, policy.samples_max - have))
        before_us = elapsed_us
        batch(count, calls, times)
        per_sample_us = (elapsed_us - before_us) / count
        slowest += [max(row) for row in times[len(slowest) :]]
        if policy.iters:
            reason = "iters" if len(times) == policy.iters else ""
            continue
        width = stats.relative_half_width(np.array(slowest))
        growth = min(max((width / policy.precision) ** 2 - 1, 0.25), 3.0) if policy.precision else 3.0
        if len(times) >= policy.samples_min and width <= policy.precision:
            reason = "precision"
        elif len(times) >= policy.samples_max:
            reason = "samples"
        elif elapsed_us >= cap_us and len(times) >= min(FEWEST_SAMPLES, policy.samples_min):
            reason = "cap"
    return Timing(
        warmup_us=np.array(warmup, dtype=float).reshape(-1, transport.size),
        time_us=np.array(times),
        host_us=np.array(hosts),
        calls_per_sample=calls,
        stop_reason=reason,
        elapsed_s=elapsed_us / 1e6,
    )
