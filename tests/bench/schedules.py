"""Tensor-parallel and Parm schedules on an emulated cluster, measured and predicted side by side. (Half an hour.)

2 x 4 ranks: tensor parallel inside of nodes, expert parallel across them, 100 Mbit/s between. One forward and one
backward pass of one layer, schedules in turns, so that what slows the machine slows them all. The model is fitted to
plain exchanges on the same fabric and has seen no schedule; what ranks compute is measured with communication left out
and given to it. Then once more with a shaped link inside of nodes, where chunks have something to hide. MiB are of both
passes and all ranks together, by the plans, in which rings gather and sum.

SCHEDULES_RUNS=DIR keeps the sweeps and the times in DIR, and takes those that are there already.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commbench import cost_model, fabric, stats
from commbench.emulated import Emulated
from commbench.fabric.network import INTERFACES
from commbench.layout import Layout
from commbench.run_folder import RunFolder
from commbench.variables import FABRIC
from tests.conftest import REPOSITORY, commbench, environment
from tests.support.ranks import forked

NODES, TP = 2, 4  # W = 8
T, D, H, E, K = 512, 256, 512, 8, 2  # C = 128: a dispatch buffer of 1 MiB in fp32
LAUNCHES, ROUNDS, WARMUP = 10, 5, 1
FABRICS = {"memory inside of nodes": "", "400 Mbit/s inside of nodes": "400mbit"}
LINK = "100mbit"
SCHEDULES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("tensor_parallel", {"tp_tokens": "duplicate"}),
    ("tensor_parallel", {"tp_tokens": "drop"}),
    ("tensor_parallel", {"tp_tokens": "drop_pipelined", "chunks": 2}),
    ("tensor_parallel", {"tp_tokens": "drop_pipelined", "chunks": 4}),
    ("tensor_parallel", {"tp_tokens": "profile"}),
    ("parm_s1", {}),
    ("parm_s2", {"chunks": 1}),
    ("parm_s2", {"chunks": 4}),
)
LEARN = ("-b", "4K", "-e", "1M", "-f", "4", "launches=4", "cap=1", "warmup=1", "--no-plots", "--quiet")
Times = dict[str, list[list[float]]]  # by schedule: of each launch, milliseconds of each round


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(os.environ.get("SCHEDULES_RUNS", temporary))
        for title, inside in FABRICS.items():
            cluster = Emulated(nodes=NODES, link=LINK, intra_link=inside)
            folder = out / (inside or "memory")
            folder.mkdir(parents=True, exist_ok=True)
            fitted = learnt(cluster, folder)
            print(f"### {LINK} between nodes, {title}\n", *fitted.describe(), sep="\n", end="\n\n")
            show(fitted, *measured(cluster, folder))


def learnt(cluster: Emulated, folder: Path) -> cost_model.Model:
    """Fitted to direct exchanges of all ranks, of places and of groups, and to single messages."""
    words = ["quick", "transport=gloo", "fabric=emulated", f"layout={NODES}x{TP}", f"link={cluster.link}"]
    words += [f"intra_link={cluster.intra_link}"] if cluster.intra_link else []
    seen: list[cost_model.Observation] = []
    for name, asked in {
        "exchanges": ("collective=all_to_all", "algorithm=direct", f"groups=world,rails,blocks:{TP}"),
        "messages": ("collective=pairs", "algorithm=direct", "round=0,6", "direction=both,there"),
    }.items():
        parent = folder / name
        if not (parent / "latest").exists():
            parent.mkdir(exist_ok=True)
            done = commbench("sweep", *words, *asked, *LEARN, "--out", str(parent), cwd=parent, timeout=1200)
            assert done.returncode == 0, done.stderr
        seen += cost_model.observe(RunFolder.open(parent / "latest"))
    return cost_model.fit(seen)


def measured(cluster: Emulated, folder: Path) -> tuple[Times, Times]:
    """Whole passes, and passes without communication."""
    for launch in range(LAUNCHES):
        answer = folder / f"times-{launch}.json"
        if not answer.exists():
            command = [sys.executable, "-m", "tests.bench.schedules", str(launch), str(answer)]
            extra = {FABRIC: str(cluster), "OMP_NUM_THREADS": "1"}
            extra["PYTHONWARNINGS"] = "ignore::FutureWarning"  # of torch, about its own names
            subprocess.run(fabric.wrap(command, cluster), env=environment(REPOSITORY / "kernels", **extra), check=True)
    told = [json.loads((folder / f"times-{launch}.json").read_text()) for launch in range(LAUNCHES)]
    return tuple({name: [one[kind][name] for one in told] for name in told[0][kind]} for kind in ("whole", "silent"))  # type: ignore[return-value]


def show(fitted: cost_model.Model, whole: Times, silent: Times) -> None:
    from moe_ref import schedules
    from moe_ref.schedules.predict import crossing, predict

    layout, arrays = Layout(NODES, TP), {name: _arrays(times) for name, times in whole.items()}
    rows = []
    for kind, params in SCHEDULES:
        schedule = schedules.get(kind, **params)
        name = str(schedule)
        interval = stats.interval(arrays[name])
        assert interval is not None
        compute_ms = stats.median_of_medians(_arrays(silent[name]))
        shape = shape_of(kind)
        found = predict(schedule, shape, fitted, layout, compute_us=1e3 * compute_ms)
        sent = crossing(schedule, shape, layout)
        rows.append((name, stats.median_of_medians(arrays[name]), interval, compute_ms, found, sent))
    print(f"{'schedule':<46} {'measured ms':>24} {'predicted ms':>24} {'error':>6} {'computes':>9} "
          f"{'MiB between':>12} {'inside':>7}")  # fmt: skip
    for name, ms, (low, high, _), compute_ms, found, sent in rows:
        here = f"{ms:.0f} [{low:.0f}, {high:.0f}]"
        says = f"{found.time_us / 1e3:.0f} [{found.low_us / 1e3:.0f}, {found.high_us / 1e3:.0f}]"
        between, inside = (f"{sent[link] / 2**20:.1f}" for link in ("inter", "intra"))
        print(f"{name:<46} {here:>24} {says:>24} {found.time_us / 1e3 / ms - 1:>+6.0%} {compute_ms:>9.0f} "
              f"{between:>12} {inside:>7}")  # fmt: skip
    won, named = min(rows, key=lambda row: row[1])[0], min(rows, key=lambda row: row[4].time_us)[0]
    loss = stats.median_of_medians(arrays[named]) / stats.median_of_medians(arrays[won]) - 1
    print(f"fastest: measured {won}; by the model {named}, which takes {loss:.0%} more; intervals of {rows[0][2][2]}")
    for name, *_ in rows:
        if name != won and (found := stats.ratio(arrays[name], arrays[won])) is not None:
            print(f"  {name} / fastest: {found.value:.2f} [{found.low:.2f}, {found.high:.2f}], "
                  f"{stats.verdict(found.low, found.high).value}")  # fmt: skip
    print()


def shape_of(kind: str) -> Any:
    """parm_s1 has the capacity of a slice, which here is a tp-th."""
    from moe_ref.schedules import Shape

    capacity = K * T // E // (TP if kind == "parm_s1" else 1)
    return Shape(T=T, D=D, E=E, K=K, C=capacity, W=NODES * TP, tp=TP, gate_bytes=4 * D * E)


def _arrays(launches: Sequence[Sequence[float]]) -> list[stats.Floats]:
    return [np.array(rounds) for rounds in launches]


def ranks(launch: int, answer: Path) -> None:
    """Inside of the fabric: forks the ranks of one launch, of which the first writes what all have taken."""
    importlib.import_module("moe_ref.distributed")  # once, before the fork
    with tempfile.TemporaryDirectory() as folder:
        codes = forked(NODES * TP, lambda rank: one_rank(rank, launch, Path(folder) / "store", answer))
    if any(codes):
        sys.exit(f"ranks ended with {codes}")


def one_rank(rank: int, launch: int, store: Path, answer: Path) -> None:
    import torch
    import torch.distributed as dist

    from commbench import communicator
    from moe_ref import FFN, Capacity, Gate, GateConfig, schedules
    from moe_ref.distributed import DistributedMoE
    from moe_ref.sharding import shard

    torch.set_num_threads(1)
    fabric.enter(rank // TP)
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACES[0]
    size = NODES * TP
    dist.init_process_group("gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size)
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACES[1]
    control = dist.new_group()  # barriers and times are on another network
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACES[0]
    comms: dict[str, Any] = {"comm": communicator()}
    places = [list(range(first, first + TP)) for first in range(0, size, TP)]
    for name, groups in (("tp", places), ("ep", [list(column) for column in zip(*places, strict=True)])):
        handles = {tuple(group): dist.new_group(group) for group in groups}
        comms[name] = communicator(next(handle for group, handle in handles.items() if rank in group))
    generator = torch.Generator().manual_seed(1)
    config = GateConfig(experts=E, top_k=K, capacity=Capacity("tutel", 1.0, multiple_of=TP))
    gate, experts = Gate(D, config, generator=generator), FFN(E // NODES, D, H, generator=generator)
    layer = DistributedMoE(gate, shard(experts, comms["tp"].rank, TP), **comms, equal_tokens=True,
                           schedule="tensor_parallel")  # fmt: skip
    group = torch.Generator().manual_seed(10 + rank // TP)
    x = torch.randn(T, D, generator=group).requires_grad_()
    gradient = torch.randn(T, D, generator=group)
    wanted = [x, *layer.parameters()]
    times: dict[str, dict[str, list[float]]] = {"whole": {}, "silent": {}}
    chosen = [schedules.get(kind, **params) for kind, params in SCHEDULES]
    for number in range(WARMUP + ROUNDS):
        first = (number + launch) % len(chosen)
        for schedule in (*chosen[first:], *chosen[:first]):
            for kind, skip in (("whole", None), ("silent", "communication")):
                layer.schedule, layer.skip = schedule, skip
                dist.barrier(control)
                began = time.perf_counter()
                torch.autograd.grad(layer(x).y, wanted, gradient)
                took = torch.tensor(1e3 * (time.perf_counter() - began))
                dist.all_reduce(took, dist.ReduceOp.MAX, group=control)
                if number >= WARMUP:
                    times[kind].setdefault(str(schedule), []).append(float(took))
    if rank == 0:
        answer.write_text(json.dumps(times))
    dist.barrier(control)


if __name__ == "__main__":
    ranks(int(sys.argv[1]), Path(sys.argv[2]))
