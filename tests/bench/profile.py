"""What a profile is worth to a program: its communicator beside torch's own all_to_all_single, on GPUs.

Calls back to back, outside of CUDA graphs and inside (20 in a graph), as programs make them: torch on tensors from
`torch.empty`, the communicator on those of `comm.empty`. Both in turn within a launch; a launch gives one ratio of
medians for each size, and the interval is over launches. Results are compared, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import commbench
from commbench import stats
from commbench.machine import gpus
from commbench.profile import file as profile_file
from commbench.units import format_size
from tests.support.ranks import on_ranks

IN_A_GRAPH = 20
ROUNDS = 9
BATCH_S = 0.004  # of calls back to back, at the least


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench profile", description=__doc__)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--launches", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=math.inf, help="no launch begins later than this")
    parser.add_argument("--out", type=Path, help="the launches' medians, as JSON")
    given = parser.parse_args(words)
    profile = profile_file.load(given.profile)
    choices = [choice for choice in profile.choices if choice.collective == "all_to_all"]
    sizes = sorted({one.size_bytes for choice in choices for one in choice.evidence})
    ranks = gpus.count(os.environ)
    began, launches = time.monotonic(), []
    for launch in range(given.launches):
        if time.monotonic() - began > given.seconds:
            break
        launches.append(on_ranks("nccl", ranks, lambda transport, n=launch: times(str(given.profile), sizes, n)))
        print(f"launch {launch + 1}: {time.monotonic() - began:.0f} s", flush=True)
        if given.out:
            about = {"sizes": sizes, "ranks": ranks, "launches": launches}
            given.out.write_text(json.dumps(about) + "\n")
    print(table(sizes, launches))
    return 0 if all(cell["equal"] for launch in launches for cell in launch.values()) else 1


def times(profile: str, sizes: Sequence[int], launch: int) -> dict[str, Any]:
    """Microseconds a call of both on this launch, `SIZE eager` and `SIZE captured`; the slowest rank's."""
    import torch
    import torch.distributed as dist

    found: dict[str, Any] = {}
    comm = commbench.load_profile(profile).communicator()
    torch.manual_seed(1000 * launch + comm.rank)  # ranks with equal data would hide a mistake
    for size in sizes:
        for captured in (False, True):
            inp = torch.randint(0, 256, (size,), dtype=torch.uint8, device=comm.device)
            theirs = torch.empty_like(inp)
            mine = comm.empty(size, torch.uint8, captured=captured)
            own_inp = comm.empty(size, torch.uint8, captured=captured).copy_(inp)
            torch.cuda.synchronize()
            arms: dict[str, Callable[[], object]] = {
                "torch": lambda a=theirs, b=inp: dist.all_to_all_single(a, b),
                "profile": lambda a=mine, b=own_inp: comm.all_to_all(a, b),
            }
            comm.prepare("all_to_all", mine, own_inp)
            for call in (*arms.values(), *arms.values()):
                call()
            graphs = [graph_of(call) if captured else call for call in arms.values()]
            per_graph = IN_A_GRAPH if captured else 1
            runs = [graph.replay if captured else graph for graph in graphs]
            samples = alternate(comm, runs, launch)
            equal = bool(torch.equal(mine, theirs))
            equal = bool(comm._transport.all_gather([float(equal)]).all())
            label = f"{size} {'captured' if captured else 'eager'}"
            found[label] = {
                name: float(np.median(values)) * 1e6 / per_graph for name, values in zip(arms, samples, strict=True)
            } | {"equal": equal}
            if captured:
                for graph in graphs:
                    graph.reset()
            del inp, theirs, mine, own_inp, arms, graphs, runs
    comm.close()
    return found


def graph_of(call: Callable[[], object]) -> Any:
    import torch

    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        for _ in range(IN_A_GRAPH):
            call()
    return graph


def alternate(comm: Any, runs: Sequence[Callable[[], object]], launch: int) -> list[list[float]]:
    """Seconds a run of each, batch by batch in turn: the slowest rank's mean over a batch."""
    counts = []
    for run in runs:
        run()
        counts.append(max(1, round(BATCH_S / batch(comm, run, 3))))
    samples: list[list[float]] = [[] for _ in runs]
    for turn in range(ROUNDS):
        order = [0, 1] if (turn + launch) % 2 else [1, 0]
        for index in order:
            samples[index].append(batch(comm, runs[index], counts[index]))
    return samples


def batch(comm: Any, run: Callable[[], object], count: int) -> float:
    import torch

    torch.cuda.synchronize()
    comm._transport.all_gather([0.0])
    began = time.perf_counter()
    for _ in range(count):
        run()
    torch.cuda.synchronize()
    took = (time.perf_counter() - began) / count
    return float(comm._transport.all_gather([took]).max())


def table(sizes: Sequence[int], launches: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'size':>9}  {'calls':8}  {'torch us':>10}  {'profile us':>10}  {'ratio':>6}  95 % interval over launches"
    ]
    for how in ("eager", "captured"):
        for size in sizes:
            cells = [launch[f"{size} {how}"] for launch in launches]
            logs = np.log([cell["torch"] / cell["profile"] for cell in cells])
            ratio = stats.paired_ratio(logs)
            theirs, mine = (float(np.median([cell[name] for cell in cells])) for name in ("torch", "profile"))
            interval = "not estimable" if ratio.interval is None else f"{ratio.low:.3f} - {ratio.high:.3f}"
            wrong = "" if all(cell["equal"] for cell in cells) else "  WRONG RESULT"
            lines.append(
                f"{format_size(size):>9}  {how:8}  {theirs:10.2f}  {mine:10.2f}  {ratio.value:6.3f}  {interval}{wrong}"
            )
    return "\n".join(lines)
