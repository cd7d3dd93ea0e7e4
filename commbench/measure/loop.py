"""The one timing loop. Times only: bandwidth and intervals are computed from what it returns.

isolated   one call is one sample: barrier, mark, call, mark. The headline is the maximum over ranks.
pipelined  n calls back to back between two marks, one synchronisation, divided by n: what nccl-tests does by default.
graph      as isolated, of a CUDA graph of n calls, divided by n: what nccl-tests does with -G.

Beside a matrix product, one sample is three isolated ones in turn: the call alone, the product alone, and both.

Ranks vote between batches of samples, never inside a timed region: all see all samples and decide alike.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from commbench import stats
from commbench.records import Policy
from commbench.stats import Floats
from commbench.transports.base import Ready, Timer, Transport

PIPELINED_CALLS = 20  # nccl-tests' -n
GRAPH_CALLS = 20  # in one graph; as many pairs of buffers take turns in it at the most
PIPELINED_SAMPLE_S = 0.25  # one pipelined sample shall not take longer, if at least 2 calls fit
FEWEST_SAMPLES = 3  # even where the cap is spent
BEAT_S = 5.0  # a batch shall end by then, so that a slow case is told from a hung one


@dataclass(frozen=True, slots=True)
class Timing:
    """All samples of one measurement, microseconds; rows are samples, columns are ranks."""

    warmup_us: Floats
    time_us: Floats
    host_us: Floats  # the calling thread's time in `start`
    begin_us: Floats  # when each rank left the barrier, on a clock that the ranks of one host share
    beside: dict[str, Floats]  # where a product was made beside the call: each alone, and the product beside it
    calls_per_sample: int
    calls: range  # numbers of the timed calls: call i used buffers i modulo the number of pairs
    stop_reason: str  # "precision", "samples", "cap" or "iters"
    elapsed_s: float

    @property
    def slowest_us(self) -> Floats:
        """Per sample, the maximum over ranks."""
        slowest: Floats = self.time_us.max(axis=1)
        return slowest

    @property
    def skew_us(self) -> float | None:
        """Median over samples of the time between the first and the last rank leaving the barrier, if clocks tell."""
        skew = float(np.median(self.begin_us.max(axis=1) - self.begin_us.min(axis=1)))
        return None if math.isnan(skew) else skew


class Observer:
    """What the timing loop calls between timed regions."""

    beat_s = BEAT_S  # a batch shall end by then

    def arm(self) -> None:
        """After the warm-ups, before the first sample: make every output wrong, so that only timed calls mend it."""

    def beat(self) -> None:
        """After each batch: still alive."""


def take(
    timer: Timer, calls: Sequence[Ready], first: int, count: int, each: int, whole: Ready | None = None
) -> list[list[float]]:
    """`count` samples of `each` calls, on this rank: [times, host times, begins], times per call in microseconds.

    `first` numbers the first call, so that rotated buffers go on where the last batch stopped. `whole` makes `each`
    calls at once.
    """
    marks: list[tuple[Any, Any]] = []
    host: list[float] = []
    barrier, mark, clock, synchronize = timer.barrier, timer.mark, timer.host_us, timer.synchronize
    drains, n = timer.drains, len(calls)
    for number in range(first, first + count * each, each):
        turn = [whole] if whole else list(itertools.islice(itertools.cycle(calls), number % n, number % n + each))
        call = turn[0]
        barrier()
        if len(turn) == 1:
            begin = mark()
            enter = clock()
            work = call()
            leave = clock()
            if work is not None:
                work.wait()
            if drains:
                synchronize()
        else:
            begin = mark()
            enter = clock()
            for call in turn:
                work = call()
                if work is not None:
                    work.wait()
            leave = clock()
            synchronize()
        end = mark()
        work = None  # its destructor shall not run inside the next sample
        marks.append((begin, end))
        host.append((leave - enter) / each)
    synchronize()
    times = [timer.between_us(begin, end) / each for begin, end in marks]
    return [times, host, [timer.moment_us(begin) for begin, _ in marks]]


BESIDE = ("comm_alone_us", "compute_alone_us", "compute_beside_us")
_RATIOS = ("comm_slowdown", "compute_slowdown", "overlap_percent")
_MOST_ROWS = 1024  # of one product; 1 MiB of tokens
_FITTINGS = 8  # at most, of the product to the call


def take_beside(
    timer: Timer, calls: Sequence[Ready], first: int, count: int, product: Callable[[], Any]
) -> list[list[float]]:
    """As `take`, one call a sample, of call and product together, followed by the three columns of `BESIDE`.

    Each sample makes two calls: one alone, one with the product between its start and its end.
    """
    columns: list[list[float]] = [[] for _ in range(3 + len(BESIDE))]
    for number in range(first, first + 2 * count, 2):
        alone = take(timer, calls, number, 1, 1)
        timer.barrier()
        begin = timer.mark()
        product()
        end = timer.mark()
        timer.barrier()
        call = calls[(number + 1) % len(calls)]
        both = timer.mark()
        enter = timer.host_us()
        work = call()
        started, leave = timer.mark(), timer.host_us()
        product()
        made = timer.mark()
        if work is not None:
            work.wait()
        done = timer.mark()
        timer.synchronize()
        between = timer.between_us
        values = [between(both, done), leave - enter, timer.moment_us(both)]
        values += [alone[0][0], between(begin, end), between(started, made)]
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return columns


def _product(transport: Transport, timer: Timer, call_us: float) -> Callable[[], Any]:
    """A matrix product, or several in turn, that last as long as the call within a tenth; the same on all ranks."""
    rows = repeats = 1
    for _ in range(_FITTINGS):
        one = transport.product(rows)

        def product(one: Callable[[], Any] = one, repeats: int = repeats) -> None:
            for _ in range(repeats):
                one()

        times = []
        for _ in range(5):
            timer.barrier()
            begin = timer.mark()
            product()
            end = timer.mark()
            timer.synchronize()
            times.append(timer.between_us(begin, end))
        took_us = float(transport.all_gather([sorted(times)[2]]).max())
        if 0.9 < took_us / call_us < 1.1:
            break
        wanted = min(max(rows * repeats * call_us / max(took_us, 1e-3), 1.0), 1e9)
        rows = min(round(wanted), _MOST_ROWS)
        repeats = max(1, round(wanted / rows))
    return product


def beside_ratios(timing: Timing) -> dict[str, float]:
    """How much slower each was beside the other, medians over samples of ratios of maxima over ranks.

    Of the two alone, the longer one is what both together take at best; OSU's overlap (osu_ialltoall) in percent.
    """
    both = timing.slowest_us
    comm, compute, compute_beside = (timing.beside[name].max(axis=1) for name in BESIDE)
    overlap = np.clip(100 - (both - compute) / comm * 100, 0, 100)
    ratios = (both / np.maximum(comm, compute), compute_beside / compute, overlap)
    return {name: float(np.median(ratio)) for name, ratio in zip(_RATIOS, ratios, strict=True)}


def measure(
    transport: Transport,
    ready: Sequence[Ready],
    policy: Policy,
    *,
    mode: str,
    observer: Observer,
    beside: bool = False,
) -> Timing:
    """Warm up, then sample until the median is known, the samples or the seconds run out. Collective.

    `ready` are the calls that take turns, one for each pair of buffers. `beside`: a matrix product beside each call, in
    mode `isolated`.
    """
    collecting = gc.isenabled()
    gc.disable()  # a collection inside a sample would be measured
    try:
        return _measure(transport, ready, policy, mode, observer, beside)
    finally:
        if collecting:
            gc.enable()


def _measure(
    transport: Transport,
    ready: Sequence[Ready],
    policy: Policy,
    mode: str,
    observer: Observer,
    beside: bool,
) -> Timing:
    timer = transport.timer(mode)
    transport.barrier()  # ranks come from filling buffers at different times; the cap shall not pay for that
    started = timer.host_us()
    warmup: list[Floats] = []  # times of each batch, samples x ranks
    batches: list[Floats] = []  # of timed samples: columns x samples x ranks
    elapsed_us = 0.0
    called = 0

    def batch(count: int, calls: int) -> Floats:
        """Take `count` samples of `calls` calls and vote: columns x samples x ranks, the same on all ranks."""
        nonlocal elapsed_us, called
        mine = timed(called, count, calls)
        called += count * calls
        # One vote: all samples of all ranks, and the longest elapsed time, so that every rank decides alike.
        votes = transport.all_gather([timer.host_us() - started, *itertools.chain(*mine)])
        elapsed_us = float(votes[:, 0].max())
        observer.beat()
        columns: Floats = votes[:, 1:].reshape(-1, len(mine), count).transpose(1, 2, 0)
        return columns

    product: Callable[[], Any] | None = None
    whole: Ready | None = None

    def timed(first: int, count: int, calls: int) -> list[list[float]]:
        if product is not None:
            return take_beside(timer, ready, first, count, product)
        return take(timer, ready, first, count, calls, whole)

    cap_us = math.inf if policy.iters else policy.cap_s * 1e6
    # The first warm-up tells how long a call takes; the rest may use a quarter of the cap.
    calls = 1
    per_sample_us = math.inf  # unknown: the first batch is one sample
    if policy.warmup or mode != "isolated" or beside:
        warmup.append(batch(1, 1)[0])
        per_sample_us = elapsed_us
        affordable = int(min(cap_us / 4, 1e15) / max(per_sample_us, 1e-3))
        for count in _split(min(max(0, policy.warmup - 1), affordable), per_sample_us, observer.beat_s):
            before_us = elapsed_us
            warmup.append(batch(count, 1)[0])
            per_sample_us = (elapsed_us - before_us) / count
        if beside:
            warmup.append(batch(5, 1)[0])
        slowest_us = np.concatenate(warmup).max(axis=1)
        call_us = max(float(np.median(slowest_us[1:]) if beside else slowest_us.min()), 1e-3)
        if mode == "pipelined":
            calls = max(2, min(PIPELINED_CALLS, int(PIPELINED_SAMPLE_S * 1e6 / call_us)))
            per_sample_us = call_us * calls
        if mode == "graph":
            calls = GRAPH_CALLS
            whole = transport.capture([ready[call % len(ready)] for call in range(calls)])
            per_sample_us = call_us * calls
        if beside:
            product = _product(transport, timer, call_us)
            calls = 2
            per_sample_us *= 4
    paused = timer.host_us()
    observer.arm()
    transport.barrier()
    started += timer.host_us() - paused
    first_call = called

    reason = ""
    growth = 0.0  # of the number of samples, in the next batch
    slowest = np.empty(0)  # per sample, the maximum over ranks
    while not reason:
        # Batches aim at the number of samples that the precision seems to need, so that votes cost little beside the
        # samples. None runs far past the cap, nor so long that nothing is heard of it.
        have = slowest.size
        count = policy.iters - have if policy.iters else max(policy.samples_min - have, int(have * growth))
        affordable = max(1, int(min(cap_us - elapsed_us, observer.beat_s * 1e6) / max(per_sample_us, 1e-3)))
        count = max(1, min(count, affordable))
        if not policy.iters:
            count = min(count, policy.samples_max - have)
        before_us = elapsed_us
        batches.append(batch(count, calls))
        per_sample_us = (elapsed_us - before_us) / count
        slowest = np.concatenate([slowest, batches[-1][0].max(axis=1)])
        if policy.iters:
            reason = "iters" if slowest.size == policy.iters else ""
            continue
        width = stats.relative_half_width(slowest)
        aim = min(width / policy.precision, 2.0) ** 2 if policy.precision > 0 else 4.0
        growth = max(aim - 1, 0.25)
        if slowest.size >= policy.samples_min and policy.precision > 0 and width <= policy.precision:
            reason = "precision"
        elif slowest.size >= policy.samples_max:
            reason = "samples"
        elif elapsed_us >= cap_us and slowest.size >= min(FEWEST_SAMPLES, policy.samples_max):
            reason = "cap"
    time_us, host_us, begin_us, *others = np.concatenate(batches, axis=1)
    return Timing(
        warmup_us=np.concatenate(warmup) if warmup else np.empty((0, transport.size)),
        time_us=time_us,
        host_us=host_us,
        begin_us=begin_us,
        beside=dict(zip(BESIDE, others, strict=True)) if beside else {},
        calls_per_sample=1 if beside else calls,
        calls=range(first_call, called),
        stop_reason=reason,
        elapsed_s=elapsed_us / 1e6,
    )


def _split(count: int, each_us: float, beat_s: float) -> list[int]:
    """`count` calls in batches short enough to be heard of."""
    largest = max(1, int(beat_s * 1e6 / max(each_us, 1e-3)))
    return [min(largest, count - first) for first in range(0, count, largest)]
