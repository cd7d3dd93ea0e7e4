"""The planner's regret on emulated 2x4: what settings of `emulated-2x4` take, beside what was planned of them.

    python -m tests.bench.plan [minutes=9] [launches=3] [count=12]

measures what is left, as long as `minutes` allow, and prints the comparison of what there is. What is done is kept in
results/plan-2x4/steps.jsonl, and a second start goes on from there. Links' costs are results/reference's, of plain
exchanges; products are timed first; the host's part is taken from one training inside a node, which is not judged.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commbench.strategy import planned, validation
from commbench.strategy.planned import PlanRequest
from commbench.strategy.setting import Setting, Settings

FOLDER = Path("results/plan-2x4")
COSTS = "results/reference/train_ab-2x4-2cpu/model.json"
CLUSTER = ("nodes=2", "gpus_per_node=4", "memory_gb=4", "peak_tflops=0.1", "memory_gbs=10", "cores=2")
STEPS = 8
SIZES = [(m, n, k) for m in (128, 256, 512, 1024) for n in (32, 64, 128, 256) for k in (32, 128)]
GROUPED = [(g, m, n) for g in (2, 4) for m in (64, 128, 256, 512) for n in (32, 64, 128)]


def main(words: Sequence[str]) -> int:
    told = dict(word.split("=") for word in words)
    minutes, launches, count = (float(told.get(name, default)) for name, default in
                                (("minutes", 9), ("launches", 3), ("count", 12)))  # fmt: skip
    FOLDER.mkdir(parents=True, exist_ok=True)
    until, table = time.monotonic() + 60 * minutes, FOLDER / "gemm.jsonl"
    if not table.exists():
        table.write_text("".join(json.dumps(row) + "\n" for row in products()))
    inside = measured("inside", request(table), Setting(ep=8, dp=8), until, 1, "nodes=1", "ranks_per_node=8",
                      "fabric=real")  # fmt: skip
    host = host_us(table, inside) if inside else None
    its = request(table, *([f"launch_us={host:.4g}"] if host else []))
    settings = its.problem.settings()
    chosen = random.Random(23).sample(range(len(settings)), min(int(count), len(settings)))
    for number in range(1, int(launches) + 1):
        for place in chosen:
            measured(str(place), its, settings[place], until, number)
    print(
        f"host {host if host is None else round(host, 1)} us a kernel; {len(settings)} settings, {len(chosen)} judged"
    )
    report(its, settings, chosen)
    return 0


def request(table: Path, *more: str) -> PlanRequest:
    """Return the plan of all settings that ours runs."""
    words = ["emulated-2x4", *CLUSTER, f"costs={COSTS}", f"gemm={table}", "trainer=commbench", "zero=1", *more]
    return planned.read(words)


def products() -> list[dict[str, Any]]:
    """Time products on one CPU: the best of 60."""
    import torch

    torch.set_num_threads(1)

    def tflops(flops: float, a: torch.Tensor, b: torch.Tensor) -> float:
        times = []
        for _ in range(60):
            begin = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - begin)
        return flops / min(times) / 1e12

    plain = [{"m": m, "n": n, "k": k, "tflops": tflops(2 * m * n * k, torch.randn(m, k), torch.randn(k, n))}
             for m, n, k in SIZES]  # fmt: skip
    several = [{"groups": g, "m": m, "n": n, "k": 128, "tflops": tflops(
        2 * g * m * n * 128, torch.randn(g, m, 128), torch.randn(g, 128, n))} for g, m, n in GROUPED]  # fmt: skip
    return plain + several


def measured(name: str, its: PlanRequest, setting: Setting, until: float, launches: int, *more: str) -> list[float]:
    """Return the launches of a setting that there are, after one more where it lacks some and time is left."""
    file = FOLDER / "steps.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = [line["us"] for line in lines if line["name"] == name]
    if len(known) < launches and time.monotonic() < until:
        us = validation.train_once(its, setting, FOLDER, STEPS, more)
        with file.open("a") as out:
            out.write(json.dumps({"name": name, "setting": setting.label, "us": us}) + "\n")
        known.append(us)
    return known


def host_us(table: Path, inside: Sequence[float]) -> float:
    """Return what the host takes for a kernel, so that the training inside one node takes what it took."""
    words = ["emulated-2x4", "nodes=1", "gpus_per_node=8", *CLUSTER[2:], "intra_gbs=10", "intra_alpha_us=200",
             f"gemm={table}", "trainer=commbench"]  # fmt: skip
    low, high = 1.0, 1e4
    for _ in range(40):
        middle = (low * high) ** 0.5
        problem = planned.read([*words, f"launch_us={middle}"]).problem
        us = problem.times(Settings.of([Setting(ep=8, dp=8)]), problem.draw(1)).us[0, 0]
        low, high = (middle, high) if us < float(np.median(inside)) else (low, middle)
    return low


def report(its: PlanRequest, settings: Settings, chosen: Sequence[int]) -> None:
    """Print each setting with both times, then regret, the group, coverage and Kendall's tau."""
    file = FOLDER / "steps.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    by_name: dict[str, list[float]] = {}
    for line in lines:
        by_name.setdefault(line["name"], []).append(line["us"])
    there = [place for place in chosen if str(place) in by_name]
    if len(there) < 2:
        print(f"{len(there)} measured: nothing to compare yet")
        return
    compare(its, settings.take(np.array(there)), [float(np.median(by_name[str(place)])) for place in there])


def compare(its: PlanRequest, settings: Settings, measured_us: Sequence[float]) -> None:
    """Print what was planned beside what was measured."""
    problem = its.problem
    draws = problem.draw()
    us = problem.times(settings, draws).us
    low, middle, high = np.quantile(us, (0.05, 0.5, 0.95), axis=0)
    took = np.array(measured_us)
    for place in np.argsort(took):
        print(f"{settings[int(place)].label:60} {took[place] / 1e3:8.0f} ms, planned {middle[place] / 1e3:8.0f} "
              f"[{low[place] / 1e3:.0f}-{high[place] / 1e3:.0f}] {middle[place] / took[place] - 1:+.0%}")  # fmt: skip
    first = int(np.argmin(middle))
    tied = np.flatnonzero((us < us[:, [first]]).mean(axis=0) >= 0.05)
    group = [first, *sorted(tied, key=lambda place: middle[place])][:6]
    signs = np.sign(np.subtract.outer(took, took)) * np.sign(np.subtract.outer(middle, middle))
    pairs = len(took) * (len(took) - 1)
    print(f"regret {took[first] / took.min() - 1:.1%}; of the group {took[group].min() / took.min() - 1:.1%}; inside "
          f"{np.mean((low <= took) & (took <= high)):.0%}; half-width {np.median((high - low) / 2 / middle):.0%}; "
          f"median error {np.median(np.abs(middle / took - 1)):.0%}; tau {signs.sum() / pairs:.2f}; "
          f"always the median setting: {np.median(took) / took.min() - 1:.0%}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
