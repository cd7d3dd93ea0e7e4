"""How samples are timed on GPUs.

EventTimer  isolated calls and graphs: events on the stream. Before each sample a kernel spins for longer than the host
            takes to enqueue the rest; then the ranks meet on their streams. So neither the gap between launches nor the
            time at which a host comes along is measured.
HostTimer   calls back to back: the host's clock, as nccl-tests does it. Ranks of one host start at an agreed time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

from commbench.transports.host_clock import HostMarks

_FIRST_SPIN_US = 300.0
_LONGEST_SPIN_US = 5000.0  # a call that waits for the GPU on the host would ask for ever more
_START_IN_NS = 1_000_000  # several times what it takes to agree on it
_CALIBRATION_CYCLES = 2_000_000
_CALIBRATION_S = 0.4  # an idle GPU runs at a fifth of its clock
_SKEW_SAMPLES = 20
_SKEW_BARRIERS = 10


class EventTimer:
    drains = False  # marks are on the stream

    def __init__(self, meet: Callable[[], object], together: Callable[[], None]) -> None:
        """`meet` makes the ranks' streams meet; `together` returns on all ranks when all have called it."""
        self._meet = meet
        self._spin_us = _FIRST_SPIN_US
        self._since = self._enqueued = 0
        together()
        self._cycles_per_us = self._calibrate()
        self.skew_us: float | None = self._skew()

    def barrier(self) -> None:
        torch.cuda.current_stream().synchronize()
        # As long as the last sample took to enqueue, and half as much again; it becomes shorter slowly.
        took_us = (self._enqueued - self._since) / 1e3
        self._spin_us = min(max(0.98 * self._spin_us, 1.5 * took_us + 20), _LONGEST_SPIN_US)
        torch.cuda._sleep(int(self._spin_us * self._cycles_per_us))
        self._meet()
        self._since = self._enqueued = time.perf_counter_ns()

    def mark(self) -> torch.cuda.Event:
        event = self.aside()
        self._enqueued = time.perf_counter_ns()
        return event

    def aside(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def synchronize(self) -> None:
        torch.cuda.current_stream().synchronize()

    def between_us(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(start.elapsed_time(end)) * 1e3

    def moment_us(self, mark: torch.cuda.Event) -> float:
        return math.nan  # GPUs have no common clock

    def host_us(self) -> float:
        return time.perf_counter_ns() / 1e3

    def preemptions(self) -> int:
        return 0

    def _calibrate(self) -> float:
        """Cycles that `torch.cuda._sleep` spins in a microsecond, once the clock has risen.

        At the highest clock seen, so that a spin is never shorter than asked for.
        """
        rates: list[float] = []
        until = time.monotonic() + _CALIBRATION_S
        while len(rates) < 3 or time.monotonic() < until:
            begin = self.mark()
            torch.cuda._sleep(_CALIBRATION_CYCLES)
            end = self.mark()
            self.synchronize()
            rates.append(_CALIBRATION_CYCLES / self.between_us(begin, end))
        self._since = self._enqueued  # these were no sample
        return max(rates)

    def _skew(self) -> float:
        """What it takes to meet when all are there: the last rank leaves the barrier no later after the first.

        Of several barriers in a row, less the first, as a pair of events costs more than what is between them.
        """
        times = []
        for barriers in (1, 1 + _SKEW_BARRIERS) * _SKEW_SAMPLES:
            self.barrier()
            begin = self.mark()
            for _ in range(barriers):
                self._meet()
            end = self.mark()
            self.synchronize()
            times.append(self.between_us(begin, end))
        return max(0.0, (statistics.median(times[1::2]) - statistics.median(times[::2])) / _SKEW_BARRIERS)


class HostTimer(HostMarks):
    drains = True

    def __init__(self, agree: Callable[[float], float], *, one_host: bool) -> None:
        """`agree` gives the largest of all ranks' values, and so makes them meet."""
        self._agree = agree
        self._one_host = one_host

    def barrier(self) -> None:
        torch.cuda.current_stream().synchronize()
        latest = int(self._agree(float(time.perf_counter_ns())))
        if self._one_host:  # whose ranks share this clock: nobody leaves before the slowest can
            while time.perf_counter_ns() < latest + _START_IN_NS:
                pass

    def synchronize(self) -> None:
        torch.cuda.current_stream().synchronize()
