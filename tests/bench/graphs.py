"""Our layer from CUDA graphs and compiled, beside the eager one: python -m tests.bench graphs --out FILE.

The layer of `helloworld` on one GPU, as `MoE`: 32 x 1024 tokens, D = H = 2048, 2 experts, top-2, capacity factor 1 (or
`--capacity dropless`), ReLU, biases, all in one dtype, SGD, a loss from the sum over D. `--ways` in one process, each
on weights of its own:

    eager     layer, backward, optimizer
    layer     the same with `layer.graph()`: the layer's passes are replayed, loss and optimizer are eager
    step      forward, loss, backward and optimizer in one graph
    compiled  as eager, with `torch.compile(layer, fullgraph=True)`

They take turns, every other round backwards. `ms`: the host's clock with a synchronisation before and after, as Tutel
times a step: median of all rounds, and the range of the medians of each repetition. `gpu ms`: events around a step.
`product`: the step's products at the rate of one of 8192^3 in this run, which is what no way can go below.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from commbench.machine import gpus
from moe_ref import FFN, Capacity, Gate, GateConfig, MoE
from moe_ref.capturing import capture
from tests.bench import steps
from tests.bench.helloworld import Setting
from tests.bench.steps import DTYPES

WAYS = ("eager", "layer", "step", "compiled")
CAPACITIES = {"1.0": Capacity("tutel", 1.0), "dropless": Capacity("dropless")}
LEARNING_RATE = 1e-5


class Run:
    """A layer, its tokens, and a step."""

    def __init__(
        self, setting: Setting, dtype: torch.dtype, device: torch.device, *, capacity: str, input_gradient: bool
    ) -> None:
        config = GateConfig(
            experts=setting.local_experts, top_k=setting.top_k, normalise="before", dtype="input",
            capacity=CAPACITIES[capacity],
        )  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        experts = FFN(setting.local_experts, setting.width, setting.hidden, activation="relu", generator=generator)
        self.layer = MoE(Gate(setting.width, config, generator=generator), experts).to(device, dtype)
        self.call: Callable[..., Any] = self.layer
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=LEARNING_RATE)
        x = torch.randn(setting.batch, setting.tokens, setting.width, generator=torch.Generator().manual_seed(0))
        self.x = x.to(device, dtype).requires_grad_(input_gradient)
        self.target = torch.zeros(setting.batch, dtype=torch.int64, device=device)

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None
        y = self.call(self.x).y
        loss = functional.nll_loss(functional.log_softmax(y.sum(2), dim=1), self.target)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def way(self, name: str) -> Callable[[], Any]:
        if name == "layer":
            self.layer.graph()
        if name == "compiled":
            self.call = torch.compile(self.layer, fullgraph=True)
        for _ in range(3):
            self.step()
        if name != "step":
            return self.step
        graph = torch.cuda.CUDAGraph()
        with capture(graph):
            self.loss = self.step()
        self.graph = graph
        return graph.replay


def timed(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e3


def measured(
    setting: Setting, dtype: str, device: torch.device, ways: Sequence[str], *, repeats: int, rounds: int, **how: Any
) -> list[dict[str, Any]]:
    """One row for each way."""
    timer = steps.timer_of(device)
    rate = steps.product_rate(timer, dtype, device)
    runs = {name: Run(setting, DTYPES[dtype], device, **how) for name in ways}
    calls = {name: run.way(name) for name, run in runs.items()}
    wall: dict[str, list[list[float]]] = defaultdict(list)
    on_gpu: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name in ways:
            wall[name].append([])
        for number in range(rounds):
            for name in ways if number % 2 else reversed(ways):
                calls[name]()
                wall[name][-1].append(timed(calls[name]))
                on_gpu[name].append(steps.sample(timer, calls[name])[1])
    assert "layer" not in runs or "0 replays" not in repr(runs["layer"].layer), repr(runs["layer"].layer)
    made = []
    for name in ways:
        medians = [float(np.median(one)) for one in wall[name]]
        made.append({
            "dtype": dtype, **how, "way": name,
            "ms": float(np.median(list(itertools.chain(*wall[name])))), "ms_low": min(medians), "ms_high": max(medians),
            "gpu_ms": float(np.median(on_gpu[name])),
            "product_ms": setting.flop(input_gradient=how["input_gradient"]) / rate * 1e3,
        })  # fmt: skip
    return made


def table(rows: Sequence[dict[str, Any]]) -> str:
    heads = ("dtype", "capacity", "input gradient", "way", "ms", "range", "gpu ms", "product", "of it")
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        lines.append((row["dtype"], row["capacity"], "yes" if row["input_gradient"] else "no", row["way"],
                      f"{row['ms']:.2f}",
                      f"{row['ms_low']:.2f}-{row['ms_high']:.2f}", f"{row['gpu_ms']:.2f}", f"{row['product_ms']:.2f}",
                      f"{row['product_ms'] / row['ms']:.0%}"))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(words: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench graphs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", default="bf16,fp16", metavar="A,B")
    parser.add_argument("--ways", default="eager,layer,step", metavar="A,B", help=", ".join(WAYS))
    parser.add_argument("--capacity", default="1.0", choices=[*CAPACITIES])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=16, help="of each repetition")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of all that was found")
    args = parser.parse_args(words)
    if not gpus.count(os.environ):
        print("no GPU")
        return 0
    device, rows = torch.device("cuda", 0), []
    for dtype, input_gradient in itertools.product(args.dtypes.split(","), (False, True)):
        rows += measured(Setting(), dtype, device, args.ways.split(","), repeats=args.repeats, rounds=args.rounds,
                         capacity=args.capacity, input_gradient=input_gradient)  # fmt: skip
        print(table(rows[-args.ways.count(",") - 1 :]), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    if args.out:
        args.out.write_text(json.dumps({"about": steps.about(device), "rows": rows}, indent=1) + "\n")
    print(table(rows))
    return 0
