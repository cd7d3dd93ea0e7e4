"""gloo direct, pipelined, through commbench's loop against a bare loop over torch, alternating in the same ranks.

The bare loop also runs against itself, which shows how far apart two equal things look on this machine.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from commbench import algorithms
from commbench.layout import Layout
from commbench.measure.loop import PIPELINED_CALLS
from commbench.measure.samples import take
from commbench.spec import Spec
from commbench.units import format_size
from tests.support.ranks import on_gloo

RANKS = 4
PAIRS = 200
SIZES = (64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)


def bare_loop(out: Any, inp: Any, calls: int) -> float:
    """What anybody would write: microseconds per call on this rank."""
    import torch.distributed as dist

    dist.barrier()
    begin = time.perf_counter()
    for _ in range(calls):
        dist.all_to_all_single(out, inp)
    end = time.perf_counter()
    return (end - begin) / calls * 1e6


def compare(transport: Any) -> list[dict[str, Any]]:
    """Mean over ranks of each sample, for the three arms, by size."""
    results = []
    for size in SIZES:
        spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=size, layout=Layout(1, RANKS))
        bound = algorithms.get("all_to_all", "direct").prepare(transport.world, spec)
        out, inp = transport.world.empty(size), transport.world.empty(size)
        ready = bound.bind([(out, inp)])
        arms = {
            "ours": lambda r=ready: take(transport, r, 0, 1, PIPELINED_CALLS).columns[0][0],
            "bare": lambda o=out, i=inp: bare_loop(o, i, PIPELINED_CALLS),
            "again": lambda o=out, i=inp: bare_loop(o, i, PIPELINED_CALLS),
        }
        times: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(PAIRS + 2):
            names = list(arms) if number % 2 else list(arms)[::-1]
            for name in names:
                mine = arms[name]()
                mean = float(transport.all_gather([mine]).mean())
                if number >= 2:  # the first two pairs warm up
                    times[name].append(mean)
        results.append({"size": size, **times})
    return results


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Geometric mean of the pairs' ratios with its 95 % bootstrap interval over pairs."""
    logs = np.log(np.array(numerator) / np.array(denominator))
    rng = np.random.default_rng(0)
    replicates = logs[rng.integers(0, logs.size, size=(5000, logs.size))].mean(axis=1)
    low, high = np.exp(np.quantile(replicates, [0.025, 0.975]))
    return float(np.exp(logs.mean())), float(low), float(high)


def main() -> None:
    print(f"{RANKS} ranks, {PAIRS} pairs, {PIPELINED_CALLS} calls per sample, mean over ranks, us per call (median)")
    heads = ("ours", "bare", "ours/bare", "95 % interval", "bare/bare", "95 % interval")
    print(f"{'size':>8} " + " ".join(f"{head:>13}" for head in heads))
    for result in on_gloo(RANKS, compare):
        comparisons = [ratio(result["ours"], result["bare"]), ratio(result["again"], result["bare"])]
        cells = [f"{float(np.median(result[name])):.1f}" for name in ("ours", "bare")]
        cells += [text for centre, low, high in comparisons for text in (f"{centre:.3f}", f"{low:.3f}-{high:.3f}")]
        print(f"{format_size(result['size']):>8} " + " ".join(f"{cell:>13}" for cell in cells), flush=True)
