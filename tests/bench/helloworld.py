"""Our layer under the conditions of Tutel's `helloworld` example: python -m tests.bench helloworld --gpus 2 --out FILE.

32 x 1024 tokens a rank, D = H = 2048, 2 experts a rank, top-2, capacity factor 1, ReLU, biases, everything in one
dtype, the gate too, SGD, and a loss from the sum over D; the gate's gradient is averaged over ranks. All ranks have the
same tokens, which need no gradient: 2.75 TFLOP of products a step. A second row has the input's gradient: 3.3 TFLOP.

`ms` is a step as Tutel times it, on the host's clock with a synchronisation before and after, of the slowest rank:
median with its 95 % interval, of samples of one process group, and the mean of the last ten, which is what `helloworld`
prints. `gpu ms` is the GPU's part alone, with the gaps between launches hidden. `graph` replays the step from a CUDA
graph. The stages are timed alone, forward and backward, on the slowest rank each. `--schedule` takes several, with
commas.

Conditions restated from Tutel 0.3's example (MIT); its rules are `Capacity("tutel")`, normalisation before dropping.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import commbench
from commbench import stats
from commbench.machine import gpus
from moe_ref import FFN, Capacity, Gate, GateConfig, dispatch, schedules
from moe_ref.distributed import DistributedMoE
from moe_ref.experts import by_expert, by_source
from tests.bench import steps
from tests.bench.steps import DTYPES, Stage, back, through
from tests.support.ranks import on_ranks

LEARNING_RATE = 1e-5
LAST = 10
WARMUP = 10
TRANSPORTS = {"cuda": "nccl", "cpu": "gloo"}


@dataclass(frozen=True, slots=True)
class Setting:
    """Of one rank, but for `ranks`."""

    batch: int = 32
    tokens: int = 1024  # of a sequence
    width: int = 2048
    hidden: int = 2048
    local_experts: int = 2
    top_k: int = 2
    steps: int = 100
    repeats: int = 20  # of GPU times and stages
    device: str = "cuda"
    profile: str = ""
    dispatch: str = ""  # ways, with commas; empty: sparse, and fused where it runs
    schedule: str = "sequential"  # ways, with commas
    chunks: int = 0  # of `pipelined`
    graph: bool = False

    def flop(self, *, input_gradient: bool) -> float:
        products = 6 if input_gradient else 5
        return 2.0 * products * self.top_k * self.batch * self.tokens * self.width * self.hidden


def exchanges(layer: DistributedMoE, shape: Sequence[int]) -> list[Stage]:
    """What is between dispatch and combine, stage by stage, one after the other."""
    experts, capacity, width = shape
    comm = layer.comm
    return [
        ("exchange", comm.autograd.all_to_all),
        ("sort", lambda x: by_expert(x.view(comm.size, experts // comm.size, capacity, width))),
        ("experts", layer.experts),
        ("unsort", lambda x: by_source(x, comm.size)),
        ("exchange back", lambda x: comm.autograd.all_to_all(x).view(experts, capacity, width)),
    ]


class Run:
    """One dtype on one rank: the layer, its data, and a step."""

    def __init__(
        self, setting: Setting, dtype: str, comm: Any, way: str, schedule: str, *, input_gradient: bool
    ) -> None:
        device: torch.device = comm.device
        kind = DTYPES[dtype]
        config = GateConfig(
            experts=setting.local_experts * comm.size, top_k=setting.top_k, normalise="before", dtype="input",
            capacity=Capacity("tutel", 1.0),
        )  # fmt: skip
        gate = Gate(setting.width, config, generator=torch.Generator().manual_seed(1))
        experts = FFN(setting.local_experts, setting.width, setting.hidden, activation="relu",
                      generator=torch.Generator().manual_seed(2 + comm.rank))  # fmt: skip
        asked = {"chunks": setting.chunks} if setting.chunks and schedule == "pipelined" else {}
        how = schedules.get(schedule, **asked)
        self.layer = DistributedMoE(gate, experts, comm, schedule=how, permute=way, equal_tokens=True,
                                   keep_buffers=bool(setting.profile)).to(device, kind)  # fmt: skip
        self.comm, self.setting, self.way = comm, setting, way
        self.shared = list(self.layer.gate.parameters())
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=LEARNING_RATE)
        shape = (setting.batch, setting.tokens, setting.width)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, kind)
        self.x = x.requires_grad_(input_gradient)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.target = torch.zeros(setting.batch, dtype=torch.int64, device=device)

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None

    def loss(self, y: Tensor) -> Tensor:
        return functional.nll_loss(functional.log_softmax(y.sum(2), dim=1), self.target)

    def average(self) -> None:
        """The gate's gradients, which every rank has its own of."""
        for parameter in self.shared:
            if parameter.grad is not None and self.comm.size > 1:
                parameter.grad /= self.comm.size
                self.comm.all_reduce(parameter.grad)

    def step(self) -> Tensor:
        self.forget()
        loss = self.loss(self.layer(self.x).y)
        loss.backward()
        self.average()
        self.optimizer.step()
        return loss.detach()

    def captured(self) -> Callable[[], Any]:
        """The step from a CUDA graph. Gradients are then where the graph has them."""
        buffer = torch.empty(self.setting.top_k * self.x.numel(), dtype=self.x.dtype, device=self.x.device)
        self.comm.prepare("all_to_all", torch.empty_like(buffer), buffer)
        for parameter in self.shared:
            self.comm.prepare("all_reduce", torch.empty_like(parameter))
        del buffer
        for _ in range(3):
            self.step()
        torch.cuda.synchronize()
        self.graph = graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            self.step()
        return graph.replay


def slowest(transport: Any, times: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The largest over ranks of each."""
    return np.asarray(transport.all_gather([float(took) for took in times])).max(axis=0)


def on_the_host(transport: Any, call: Callable[[], Any], steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Steps on the host's clock, ms, as Tutel times them, the first ones left out."""
    synchronise = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    times = []
    transport.barrier()
    for _ in range(steps):
        synchronise()
        begin = time.perf_counter()
        call()
        synchronise()
        times.append((time.perf_counter() - begin) * 1e3)
    return slowest(transport, times[min(WARMUP, steps // 2) :])


def on_the_gpu(transport: Any, call: Callable[[], Any], repeats: int) -> float:
    timer = transport.timer("isolated")
    times = [steps.sample(timer, call)[1] for _ in range(steps.WARMUP + repeats)]
    return float(np.median(slowest(transport, times[steps.WARMUP :])))


def taken_apart(transport: Any, run: Run, repeats: int) -> dict[str, float]:
    """Median ms of each stage of a step, of the slowest rank each."""
    times: dict[str, list[float]] = defaultdict(list)
    timer, layer = transport.timer("isolated"), run.layer

    def take(name: str, call: Callable[[], Any]) -> Any:
        found, took, _ = steps.sample(timer, call)
        times[name].append(took)
        return found

    x = run.x.view(-1, run.setting.width)
    for _ in range(steps.WARMUP + repeats):
        run.forget()
        routing = take("gate", functools.partial(layer.gate, x))
        weights = routing.weights_TK.detach().requires_grad_()
        cut = dataclasses.replace(routing, weights_TK=weights)
        moves = take("index", functools.partial(dispatch.get(run.way), cut))
        stages: list[Stage] = [("dispatch", moves.dispatch)]
        stages += exchanges(layer, routing.buffer_shape(run.setting.width))
        stages += [("combine", lambda buffer, moves=moves: moves.combine(buffer).view(run.x.shape))]
        stages += [("loss", run.loss)]
        tape = through(take, stages, x)
        back(take, tape, torch.ones_like(tape[-1][2]))
        take("gate backward", functools.partial(routing.weights_TK.backward, weights.grad))
        take("gate all_reduce", run.average)
        take("optimiser", run.optimizer.step)
    run.forget()
    names = list(times)
    medians = slowest(transport, [float(np.median(times[name][steps.WARMUP :])) for name in names])
    return dict(zip(names, medians.tolist(), strict=True))


def measured(
    transport: Any, setting: Setting, dtype: str, comm: Any, way: str, schedule: str, *, input_gradient: bool
) -> dict[str, Any]:
    """One row."""
    run = Run(setting, dtype, comm, way, schedule, input_gradient=input_gradient)
    row: dict[str, Any] = {"dtype": dtype, "input_gradient": input_gradient, "graph": setting.graph, "dispatch": way}
    row["schedule"] = str(run.layer.schedule)
    row["flop"] = setting.flop(input_gradient=input_gradient)
    call = run.captured() if setting.graph else run.step
    times = on_the_host(transport, call, setting.steps)
    row |= {"ms": float(np.median(times)), "samples": len(times), "mean_of_last_ms": float(times[-LAST:].mean())}
    if (interval := stats.interval([times])) is not None:
        row |= {"ms_low": interval.low, "ms_high": interval.high, "interval_of": interval.of}
    row["gpu_ms"] = on_the_gpu(transport, call, setting.repeats)
    if run.graph is not None:
        torch.cuda.synchronize()
        run.graph.reset()  # before the communicator closes
        return row
    row["loss"] = float(run.step())
    row["peak_bytes"] = steps.peak_bytes(comm.device, run.step)
    if schedule == "sequential":
        row["stages"] = taken_apart(transport, run, setting.repeats)
    return row


def of_rank(transport: Any, setting: Setting, dtypes: Sequence[str], gradients: Sequence[bool]) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)  # a forked process has none of its parent's
    found: dict[str, Any] = {"rows": []}
    comm = commbench.communicator(profile=setting.profile or None)
    found["about"] = steps.about(comm.device)
    ways = setting.dispatch.split(",") if setting.dispatch else steps.ours(comm.device)
    for dtype in dtypes:
        length = 8192 if comm.device.type == "cuda" else 64
        rate = steps.product_rate(transport.timer("isolated"), dtype, comm.device, length)
        for input_gradient, way, schedule in itertools.product(gradients, ways, setting.schedule.split(",")):
            row = measured(transport, setting, dtype, comm, way, schedule, input_gradient=input_gradient)
            row["bound_ms"] = row["flop"] / rate * 1e3
            found["rows"].append(row)
            gc.collect()
            if comm.device.type == "cuda":
                torch.cuda.empty_cache()
            if transport.rank == 0:
                print(f"{called(row)}: {row['ms']:.3f} ms", flush=True)
    found["explain"] = comm.explain()
    comm.close()
    return found


def called(row: dict[str, Any]) -> str:
    return f"{row['dtype']}, {row['dispatch']}, {row['schedule']}{', input gradient' if row['input_gradient'] else ''}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    heads = ("dtype", "input gradient", "graph", "dispatch", "schedule", "ms", "interval", "mean of last 10", "gpu ms",
             "products alone")  # fmt: skip
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        lines.append((row["dtype"], "yes" if row["input_gradient"] else "no", "yes" if row["graph"] else "no",
                      row["dispatch"], row["schedule"], f"{row['ms']:.3f}", steps.spread(row, "ms", ".3f"),
                      f"{row['mean_of_last_ms']:.3f}", f"{row['gpu_ms']:.3f}", f"{row['bound_ms']:.3f}"))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench helloworld", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--gpus", "--ranks", type=int, default=0, metavar="N", help="ranks; default: all GPUs")
    parser.add_argument("--dtypes", default="fp16,bf16,fp32", metavar="A,B")
    parser.add_argument("--gradients", default="no,yes", metavar="A,B", help="of the input: no, yes")
    for field in dataclasses.fields(Setting):
        if field.name == "graph":
            parser.add_argument("--graph", action="store_true", help="steps from a CUDA graph, without stages")
        else:
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of all that was found")
    return parser.parse_args(words)


def main(words: Sequence[str] = ()) -> int:
    args = arguments(words)
    setting = Setting(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Setting)})
    ranks = args.gpus or gpus.count(os.environ)
    if not ranks:
        print("no GPUs; on a CPU: --device cpu --ranks 2 --tokens 8 --batch 4 --width 16 --hidden 16")
        return 0
    gradients = [word == "yes" for word in args.gradients.split(",")]
    found = on_ranks(TRANSPORTS[setting.device], ranks,
                     lambda transport: of_rank(transport, setting, args.dtypes.split(","), gradients))  # fmt: skip
    found |= {"setting": dataclasses.asdict(setting), "ranks": ranks}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print()
    print(table(found["rows"]))
    for row in found["rows"]:
        if "stages" in row:
            print(f"\na step taken apart, {called(row)}, ms:")
            print(steps.stage_table(row["stages"]))
    return 0
