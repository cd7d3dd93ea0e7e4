"""How long things took, on the device that did them: host clock on a CPU, events of the current stream on a GPU."""

from __future__ import annotations

import time
from collections import defaultdict

import torch

Mark = float | torch.cuda.Event


class Timers:
    """Times by name: `begin = timers.mark()`, work, `timers.add(name, begin)`; `read` sums what was added since."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._open: dict[str, list[tuple[Mark, Mark]]] = defaultdict(list)

    def mark(self) -> Mark:
        """Return a point of time of the device."""
        if not self._gpu:
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def add(self, name: str, begin: Mark, end: Mark | None = None) -> None:
        """Note a time from `begin` to `end`, None for now."""
        self._open[name].append((begin, self.mark() if end is None else end))

    def read(self) -> dict[str, float]:
        """Return microseconds by name. Waits for the device, and forgets."""
        if self._gpu:
            torch.cuda.synchronize()
        found = {name: sum(_us(begin, end) for begin, end in spans) for name, spans in self._open.items()}
        self._open.clear()
        return found


def _us(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) or isinstance(end, float):
        assert isinstance(begin, float) and isinstance(end, float)
        return 1e6 * (end - begin)
    return 1e3 * float(begin.elapsed_time(end))
