"""What a sample costs beyond the call and the barrier: the loop itself, and the votes spread over the samples."""

from __future__ import annotations

import time
from typing import Any

from commbench import algorithms
from commbench.layout import Layout
from commbench.measure.loop import Observer, measure
from commbench.records import Policy
from commbench.spec import Spec
from tests.support.ranks import on_gloo


class Stopwatch:
    """Stands before a transport and adds up the time of its barriers and votes."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.barriers_us = self.votes_us = 0.0
        self.votes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def barrier(self) -> None:
        begin = time.perf_counter_ns()
        self._transport.barrier()
        self.barriers_us += (time.perf_counter_ns() - begin) / 1e3

    def all_gather(self, values: Any) -> Any:
        begin = time.perf_counter_ns()
        result = self._transport.all_gather(values)
        self.votes_us += (time.perf_counter_ns() - begin) / 1e3
        self.votes += 1
        return result


def cost(transport: Any, *, iters: int | None) -> dict[str, float]:
    size = transport.size * 1024
    spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=size, layout=Layout(1, transport.size))
    bound = algorithms.get("all_to_all", "direct").prepare(transport.world, spec)
    pairs = [(transport.world.empty(size), transport.world.empty(size))]
    policy = Policy(warmup=5, iters=iters, samples_min=10, samples_max=1000, precision=0.02, cap_s=2.0, launches=1)
    watch = Stopwatch(transport)
    begin = time.perf_counter_ns()
    timing = measure(watch, bound.bind(pairs), policy, mode="isolated", observer=Observer())  # type: ignore[arg-type]
    total_us = (time.perf_counter_ns() - begin) / 1e3
    samples = timing.time_us.shape[0] + timing.warmup_us.shape[0]
    calls_us = float(timing.time_us[:, transport.rank].sum() + timing.warmup_us[:, transport.rank].sum())
    return {
        "samples": samples,
        "votes": watch.votes,
        "call_us": calls_us / samples,
        "barrier_us": watch.barriers_us / samples,
        "vote_us": watch.votes_us / samples,
        "loop_us": (total_us - calls_us - watch.barriers_us - watch.votes_us) / samples,
    }


def main() -> None:
    heads = ("ranks", "stop", "samples", "votes", "call", "barrier", "loop", "votes")
    print(" ".join(f"{head:>9}" for head in heads) + "   (the last four: us per sample)")
    for ranks in (2, 4):
        for iters in (500, None):
            for _ in range(3):
                r = on_gloo(ranks, lambda transport, iters=iters: cost(transport, iters=iters))
                cells = [str(ranks), "iters=500" if iters else "adaptive", f"{r['samples']:.0f}", f"{r['votes']:.0f}"]
                cells += [f"{r[name]:.1f}" for name in ("call_us", "barrier_us", "loop_us", "vote_us")]
                print(" ".join(f"{cell:>9}" for cell in cells), flush=True)
