"""Batches of samples on one rank: marks around calls, alone or beside a matrix product. Times only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from commbench.stats import Floats
from commbench.transports.base import Ready, Timer, Transport

BESIDE = ("comm_alone_us", "compute_alone_us", "compute_beside_us")
_RATIOS = ("comm_slowdown", "compute_slowdown", "overlap_percent")
_MOST_ROWS = 1024  # of one product; 1 MiB of tokens
_FITTINGS = 8  # at most, of the product to the call


class Before(Protocol):
    """What is done before each call and after the last one, outside of what is timed: its data are loaded, checked."""

    def before(self, call: int) -> None:
        """Be told that the call of this number comes next."""
        ...

    def settle(self) -> None:
        """Be told that no call comes for a while."""
        ...


class SampleBatch(NamedTuple):
    """Samples of one rank, in columns, and the time between them that is nobody's; microseconds."""

    columns: list[list[float]]
    aside_us: float


def take(
    timer: Timer,
    calls: Sequence[Ready],
    first: int,
    count: int,
    each: int,
    whole: Ready | None = None,
    data: Before | None = None,
) -> SampleBatch:
    """Take `count` samples of `each` calls on this rank: times, host times, begins, microseconds per call.

    A fourth column has how often this process was switched out meanwhile, against its will.

    `first` numbers the first call, so that rotated buffers go on where the last batch stopped. `whole` makes `each`
    calls at once. `data` is told of each call, if samples have one each.
    """
    marks: list[tuple[Any, Any]] = []
    asides: list[tuple[Any, Any]] = []
    host: list[float] = []
    preempted: list[float] = []
    switched = timer.preemptions
    barrier, mark, clock, synchronize, aside = timer.barrier, timer.mark, timer.host_us, timer.synchronize, timer.aside
    drains, n = timer.drains, len(calls)
    for number in range(first, first + count * each, each):
        turn = [whole] if whole else list(itertools.islice(itertools.cycle(calls), number % n, number % n + each))
        call = turn[0]
        if data is not None:
            since = aside()
            data.before(number)
            asides.append((since, aside()))
        barrier()
        before = switched()
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
        preempted.append(float(switched() - before))
        work = None  # its destructor shall not run inside the next sample
        marks.append((begin, end))
        host.append((leave - enter) / each)
    if data is not None:
        since = aside()
        data.settle()
        asides.append((since, aside()))
    synchronize()
    times = [timer.between_us(begin, end) / each for begin, end in marks]
    aside_us = sum(timer.between_us(begin, end) for begin, end in asides)
    return SampleBatch([times, host, [timer.moment_us(begin) for begin, _ in marks], preempted], aside_us)


def take_beside(
    timer: Timer, calls: Sequence[Ready], first: int, count: int, product: Callable[[], Any], data: Before | None = None
) -> SampleBatch:
    """Take samples as `take` does, of call and product together, followed by the three columns of `BESIDE`.

    Each sample makes two calls: one alone, one with the product between its start and its end.
    """
    columns: list[list[float]] = [[] for _ in range(4 + len(BESIDE))]
    aside_us = 0.0
    for number in range(first, first + 2 * count, 2):
        alone = take(timer, calls, number, 1, 1, data=data)
        timer.barrier()
        begin = timer.mark()
        product()
        end = timer.mark()
        since = timer.aside()
        if data is not None:
            data.before(number + 1)
        until = timer.aside()
        timer.barrier()
        call = calls[(number + 1) % len(calls)]
        before = timer.preemptions()
        both = timer.mark()
        enter = timer.host_us()
        work = call()
        started, leave = timer.mark(), timer.host_us()
        product()
        made = timer.mark()
        if work is not None:
            work.wait()
        done = timer.mark()
        preempted = float(timer.preemptions() - before)
        after = timer.aside()
        if data is not None:
            data.settle()
        settled = timer.aside()
        timer.synchronize()
        between = timer.between_us
        values = [between(both, done), leave - enter, timer.moment_us(both), preempted]
        values += [alone.columns[0][0], between(begin, end), between(started, made)]
        aside_us += alone.aside_us + between(since, until) + between(after, settled)
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return SampleBatch(columns, aside_us)


def fit_product(transport: Transport, timer: Timer, call_us: float) -> Callable[[], Any]:
    """Return a matrix product, or several in turn, that last as long as the call within a tenth; alike on all ranks."""
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


def overlap_ratios(both: Floats, beside: Mapping[str, Floats]) -> dict[str, float]:
    """Return how much slower each was beside the other, medians over samples of ratios of maxima over ranks.

    both: the slowest rank's time of each sample; beside: the columns of `BESIDE`, samples x ranks. Of the two alone,
    the longer one is what both together take at best; OSU's overlap (osu_ialltoall) in percent.
    """
    comm, compute, compute_beside = (beside[name].max(axis=1) for name in BESIDE)
    overlap = np.clip(100 - (both - compute) / comm * 100, 0, 100)
    ratios = (both / np.maximum(comm, compute), compute_beside / compute, overlap)
    return {name: float(np.median(ratio)) for name, ratio in zip(_RATIOS, ratios, strict=True)}
