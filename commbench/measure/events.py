"""What a rank tells while it works: events.jsonl, and a trace of its own if it hangs."""

from __future__ import annotations

import json
import time
from typing import Any

from commbench.launch.job import EVENTS, Job
from commbench.measure.hang_trace import Tracer
from commbench.run_folder import append_line


class Events:
    """A rank's running commentary. By that of rank 0 the parent knows what goes on; each leaves a trace if it hangs."""

    def __init__(self, job: Job, rank: int) -> None:
        self._path = job.folder / EVENTS
        self._active = rank == 0
        self._last = 0.0
        self.timeout_s = job.timeout_s
        self.doing = "the start"
        self.tracer = Tracer(job.folder / f"trace-rank-{rank}.txt", job.timeout_s, lambda: self.doing)
        self.tracer.start()

    def tell(self, event: str, **details: Any) -> None:
        self.tracer.beat()
        if self._active:
            append_line(self._path, json.dumps({"event": event, **details}), durable=False)

    def beat(self) -> None:
        self.tracer.beat()
        if time.monotonic() - self._last > min(1.0, self.timeout_s / 10):
            self._last = time.monotonic()
            self.tell("beat")
