"""The host's clock, for transports whose calls block until they are done."""

from __future__ import annotations

import time


class HostClock:
    """Samples are taken with CLOCK_MONOTONIC, which is the same for all processes of a host."""

    mark = staticmethod(time.perf_counter_ns)

    def synchronize(self) -> None:
        return None

    def between_us(self, start: int, end: int) -> float:
        return (end - start) / 1e3

    def moment_us(self, mark: int) -> float:
        return mark / 1e3

    def host_us(self) -> float:
        return time.perf_counter_ns() / 1e3
