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
from commbench.measure.samples import BESIDE, fit_product, take, take_beside
from commbench.records import Policy
from commbench.stats import Floats
from commbench.transports.base import Ready, Transport

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
    elapsed_s: float  # without what an observer has done between samples
    whole: Ready | None = None  # all calls of a sample at once, where the mode is `graph`
    preempted: int = 0  # samples in which a rank was switched out against its will

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
    """What the timing loop calls between timed regions. It may load data and check them: that time is nobody's."""

    beat_s = BEAT_S  # a batch shall end by then
    each_call = False  # whether it is told of each call, and not of samples of several

    def before(self, call: int) -> None:
        """Be told, where `each_call` says so, that the call of this number comes next."""

    def settle(self) -> None:
        """Be told, where `each_call` says so, that no call comes for a while."""

    def found(self) -> int:
        """Return how much this rank has found to be wrong. All ranks stop where any of them has found something."""
        return 0

    def wrong(self) -> None:
        """Raise: some rank has found something wrong. Collective."""
        raise NotImplementedError

    def spare(self) -> None:
        """Be told that this takes too long."""

    def arm(self) -> None:
        """After the warm-ups, before the first sample: make every output wrong, so that only timed calls mend it."""

    def beat(self) -> None:
        """After each batch: still alive."""


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
        return _Loop(transport, ready, policy, mode, observer, beside).run()
    finally:
        if collecting:
            gc.enable()


class _Loop:
    """One measurement in progress: warm up, calibrate, arm, sample until it is known. All ranks decide alike."""

    def __init__(
        self, transport: Transport, ready: Sequence[Ready], policy: Policy, mode: str, observer: Observer, beside: bool
    ) -> None:
        self._transport, self._ready, self._policy = transport, ready, policy
        self._mode, self._observer, self._beside = mode, observer, beside
        self._timer = transport.timer(mode)
        self._cap_us = math.inf if policy.iters else policy.cap_s * 1e6
        self._called = 0  # calls so far
        self._calls = 1  # of a sample
        self._per_sample_us = math.inf  # unknown: the first batch is one sample
        self._whole: Ready | None = None  # all calls of a sample at once
        self._product: Callable[[], Any] | None = None  # what is made beside each call
        self._started = self._elapsed_us = 0.0
        self._mine_aside_us = self._aside_us = 0.0  # of this rank, and of the slowest
        self._aside_each_us = 0.0  # what is done before a sample

    def run(self) -> Timing:
        self._transport.barrier()  # ranks come from filling buffers at different times; the cap shall not pay for it
        self._started = self._timer.host_us()
        warmup = self._warm_up()
        if warmup.size:
            self._calibrate(warmup)
        self._arm()
        first_call = self._called
        columns, reason = self._sample()
        time_us, host_us, begin_us, preempted, *others = columns
        return Timing(
            warmup_us=warmup,
            time_us=time_us,
            host_us=host_us,
            begin_us=begin_us,
            preempted=int((preempted > 0).any(axis=1).sum()),
            beside=dict(zip(BESIDE, others, strict=True)) if self._beside else {},
            calls_per_sample=1 if self._beside else self._calls,
            calls=range(first_call, self._called),
            whole=self._whole,
            stop_reason=reason,
            elapsed_s=self._elapsed_us / 1e6,
        )

    def _batch(self, count: int) -> Floats:
        """Take `count` samples and vote: columns x samples x ranks, the same on all ranks."""
        elapsed_us, aside_us = self._elapsed_us, self._aside_us
        if aside_us + count * self._aside_each_us > self._cap_us / 3:
            self._observer.spare()
        data = self._observer if self._observer.each_call else None
        if self._product is not None:
            mine = take_beside(self._timer, self._ready, self._called, count, self._product, data)
        else:
            mine = take(self._timer, self._ready, self._called, count, self._calls, self._whole, data)
        self._called += count * self._calls
        self._mine_aside_us += mine.aside_us
        lasted_us = self._timer.host_us() - self._started
        # One vote: all samples of all ranks, and the longest elapsed time, so that every rank decides alike.
        told = [lasted_us, self._mine_aside_us, float(self._observer.found())]
        votes = self._transport.all_gather([*told, *itertools.chain(*mine.columns)])
        if votes[:, 2].any():
            self._observer.wrong()
        self._aside_us = float(votes[:, 1].max())
        self._elapsed_us = float(votes[:, 0].max()) - self._aside_us
        self._per_sample_us = (self._elapsed_us - elapsed_us) / count
        self._aside_each_us = (self._aside_us - aside_us) / count
        self._observer.beat()
        columns: Floats = votes[:, len(told) :].reshape(-1, len(mine.columns), count).transpose(1, 2, 0)
        return columns

    def _warm_up(self) -> Floats:
        """Make the untimed calls, of which the first tells how long one takes; return their times, samples x ranks.

        The others may use a quarter of the cap.
        """
        if not (self._policy.warmup or self._mode != "isolated" or self._beside):
            return np.empty((0, self._transport.size))
        taken = [self._batch(1)[0]]
        self._per_sample_us = self._elapsed_us
        affordable = int(min(self._cap_us / 4, 1e15) / max(self._per_sample_us, 1e-3))
        wanted = min(max(0, self._policy.warmup - 1), affordable)
        taken += [
            self._batch(count)[0]
            for count in _split(wanted, self._per_sample_us + self._aside_each_us, self._observer.beat_s)
        ]
        if self._beside:
            per_sample_us = self._per_sample_us
            taken.append(self._batch(5)[0])
            self._per_sample_us = per_sample_us
        return np.concatenate(taken)

    def _calibrate(self, warmup: Floats) -> None:
        """Choose how many calls a sample has, capture them where the mode is `graph`, and fit the product."""
        slowest_us = warmup.max(axis=1)
        call_us = max(float(np.median(slowest_us[1:]) if self._beside else slowest_us.min()), 1e-3)
        if self._mode == "pipelined":
            self._calls = max(2, min(PIPELINED_CALLS, int(PIPELINED_SAMPLE_S * 1e6 / call_us)))
            self._per_sample_us = call_us * self._calls
        if self._mode == "graph":
            self._calls = GRAPH_CALLS
            turn = itertools.islice(itertools.cycle(self._ready), GRAPH_CALLS)
            self._whole = self._transport.capture(list(turn))
            self._per_sample_us = call_us * self._calls
        if self._beside:
            self._product = fit_product(self._transport, self._timer, call_us)
            self._calls = 2
            self._per_sample_us *= 4

    def _arm(self) -> None:
        """Let the observer make every output wrong; that time is nobody's."""
        paused = self._timer.host_us()
        self._observer.arm()
        self._transport.barrier()
        self._started += self._timer.host_us() - paused

    def _sample(self) -> tuple[Floats, str]:
        """Take batches until something says stop: columns x samples x ranks, and what said so."""
        batches: list[Floats] = []
        slowest = np.empty(0)  # per sample, the maximum over ranks
        growth, reason = 0.0, ""
        while not reason:
            batches.append(self._batch(self._next_count(slowest.size, growth)))
            slowest = np.concatenate([slowest, batches[-1][0].max(axis=1)])
            reason, growth = self._stop(slowest)
        return np.concatenate(batches, axis=1), reason

    def _next_count(self, have: int, growth: float) -> int:
        """Return how many samples the next batch has. growth: of their number, as the precision seems to need.

        Votes shall cost little beside the samples; no batch runs far past the cap, nor so long that nothing is heard.
        """
        policy = self._policy
        count = policy.iters - have if policy.iters else max(policy.samples_min - have, int(have * growth))
        affordable = min(self._cap_us - self._elapsed_us, 1e15) / max(self._per_sample_us, 1e-3)
        heard_of = self._observer.beat_s * 1e6 / max(self._per_sample_us + self._aside_each_us, 1e-3)
        count = max(1, min(count, int(min(affordable, heard_of))))
        return count if policy.iters else min(count, policy.samples_max - have)

    def _stop(self, slowest: Floats) -> tuple[str, float]:
        """Return why to stop ("": go on), and by how much the number of samples should grow."""
        policy, have = self._policy, slowest.size
        if policy.iters:
            return ("iters" if have == policy.iters else ""), 0.0
        width = stats.relative_half_width(slowest)
        aim = min(width / policy.precision, 2.0) ** 2 if policy.precision > 0 else 4.0
        growth = max(aim - 1, 0.25)
        if have >= policy.samples_min and policy.precision > 0 and width <= policy.precision:
            return "precision", growth
        if have >= policy.samples_max:
            return "samples", growth
        if self._elapsed_us >= self._cap_us and have >= min(FEWEST_SAMPLES, policy.samples_max):
            return "cap", growth
        return "", growth


def _split(count: int, each_us: float, beat_s: float) -> list[int]:
    """`count` calls in batches short enough to be heard of."""
    largest = max(1, int(beat_s * 1e6 / max(each_us, 1e-3)))
    return [min(largest, count - first) for first in range(0, count, largest)]
