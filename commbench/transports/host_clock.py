"""The host's clock, for transports whose calls block until they are done."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from commbench.transports.device import Host

if TYPE_CHECKING:
    from commbench.transports.base import Ready, Timer


class HostMarks:
    """Times of CLOCK_MONOTONIC, which is the same for all processes of a host."""

    skew_us: float | None = None
    mark = aside = staticmethod(time.perf_counter_ns)

    def between_us(self, start: int, end: int) -> float:
        return (end - start) / 1e3

    def moment_us(self, mark: int) -> float:
        return mark / 1e3

    def host_us(self) -> float:
        return time.perf_counter_ns() / 1e3

    def preemptions(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class OnHost:
    """What a transport is that moves the host's memory with calls that block: its own timer, and no graphs."""

    device = Host()
    skew_us: float | None = None
    drains = False

    def timer(self, mode: str) -> Timer:
        return cast("Timer", self)

    def capture(self, calls: Sequence[Ready]) -> Ready:
        raise NotImplementedError("graphs capture what a GPU does; the plan skips such cases")

    def unsupported(self, buffers: str, *, one_sided: bool) -> str:
        return ""

    def publish(self) -> None:
        return None

    def synchronize(self) -> None:
        return None


class HostClock(OnHost, HostMarks):
    """Samples are taken with the host's clock."""


def elapsed_us(call: Callable[[], object]) -> float:
    """Return how long a call took, that is done when it returns."""
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start)
