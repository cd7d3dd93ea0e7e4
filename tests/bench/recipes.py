"""Layers of today's models on one GPU beside torch's grouped product on the same counts, and padded.

Each step is forward and backward with the gradient of the input. Tokens choose among so many experts that expert i
gets about 1 / (1 + i) of the tokens (Zipf), or `--even`. What takes turns in one process:

    ours            `MoE`, dropless, as it is by default
    ours, known     the same with counts that the host knows already, as over ranks it does
    ours, padded    capacity factor 0: each expert's rows padded to the largest load
    ours, 1.25      capacity factor 1.25, which drops
    grouped_mm      torch.nn.functional.grouped_mm alone: three products of rows that are sorted already, silu and a
                    product by element; no gate, no dispatch, no combine
    bmm, padded     the same with torch.bmm of blocks of the largest load

`wall` is on the host's clock with a synchronisation before and after, `gpu` the GPU's part alone, both medians with
the range of `--repeats`; TFLOP/s are of the products of rows that are there, over `wall`.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_ref import Capacity, Gate, GateConfig, MoE, SwiGLU, fused_experts
from tests.bench.steps import DTYPES, about, peak_bytes, sample, timer_of

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A layer's shape, on one GPU: `experts` are those that are here."""

    tokens: int
    width: int
    hidden: int
    experts: int
    top_k: int

    def flop(self) -> float:
        return 18.0 * self.tokens * self.top_k * self.width * self.hidden


SHAPES = {
    "deepseek-v3": LayerShape(4096, 7168, 2048, 32, 8),  # 256 experts on 8 GPUs
    "deepseek-v3-whole": LayerShape(4096, 7168, 2048, 256, 8),
    "qwen3-30b-a3b": LayerShape(16384, 2048, 768, 128, 8),
    "mixtral": LayerShape(8192, 4096, 14336, 8, 2),
    "tiny": LayerShape(64, 32, 16, 4, 2),  # for a CPU
}


class Uneven(nn.Module):
    """A linear router that prefers the first experts."""

    def __init__(self, inside: nn.Module, experts: int, *, even: bool) -> None:
        super().__init__()
        self.inside = inside
        wish = torch.zeros(experts) if even else -torch.arange(1, experts + 1).float().log()
        self.register_buffer("wish", wish)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        logits: Tensor = self.inside(x, dtype) + self.wish.to(dtype)
        return logits


def layer_of(shape: LayerShape, capacity: Capacity, dtype: str, device: torch.device, experts: SwiGLU | None,
             *, even: bool) -> MoE:  # fmt: skip
    config = GateConfig(experts=shape.experts, top_k=shape.top_k, capacity=capacity, normalise="before")
    gate = Gate(shape.width, config, generator=torch.Generator().manual_seed(1))
    gate.router = Uneven(gate.router, shape.experts, even=even)
    if experts is None:
        with device:  # where billions of numbers are drawn at once
            experts = SwiGLU(shape.experts, shape.width, shape.hidden, dtype=DTYPES[dtype])
    return MoE(gate, experts).to(device)


def step(layer: Callable[[Tensor], Any], x: Tensor, grad: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    for parameter in (x, *parameters):
        parameter.grad = None
    y = layer(x)
    (y if isinstance(y, Tensor) else y.y).backward(grad)


class KnownCounts(nn.Module):
    """Experts that are told on the host how many rows each has."""

    def __init__(self, experts: SwiGLU, counts: Tensor) -> None:
        super().__init__()
        self.inside, self.counts = experts, counts.cpu()

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        found: Tensor = self.inside(rows, self.counts)
        return found


def by_torch(experts: SwiGLU, counts: Tensor, rows: Tensor) -> Tensor:
    ends = counts.cumsum(0).to(torch.int32)
    mm = functools.partial(functional.grouped_mm, offs=ends)
    return mm(functional.silu(mm(rows, experts.gate_EDH)) * mm(rows, experts.up_EDH), experts.down_EHD)


def by_blocks(experts: SwiGLU, blocks: Tensor) -> Tensor:
    hidden = functional.silu(torch.bmm(blocks, experts.gate_EDH)) * torch.bmm(blocks, experts.up_EDH)
    return torch.bmm(hidden, experts.down_EHD)


def ways(shape: LayerShape, dtype: str, device: torch.device, *, even: bool) -> tuple[dict[str, Any], list[int]]:
    """Steps by name, and the counts that they are of."""
    make = functools.partial(layer_of, shape, dtype=dtype, device=device, even=even)
    ours = make(Capacity("dropless"), experts=None)
    experts = ours.experts
    assert isinstance(experts, SwiGLU)
    padded, drops = (make(Capacity("tutel", factor), experts=experts) for factor in (0, 1.25))
    generator = torch.Generator(device).manual_seed(2)

    def numbers(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=DTYPES[dtype])

    x, grad = numbers(shape.tokens, shape.width).requires_grad_(), numbers(shape.tokens, shape.width)
    counts = ours(x).routing.counts_E
    many, most = int(counts.sum()), int(counts.max())
    rows, rows_grad = numbers(many, shape.width).requires_grad_(), numbers(many, shape.width)
    parameters = list(ours.parameters())
    known = MoE(ours.gate, experts)
    known.experts = KnownCounts(experts, counts)
    made = {
        "ours": functools.partial(step, ours, x, grad, parameters),
        "ours, known": functools.partial(step, known, x, grad, parameters),
        "ours, 1.25": functools.partial(step, drops, x, grad, [*parameters, *drops.parameters()]),
    }
    if not fused_experts.grouped_unsupported(rows, experts.gate_EDH):
        made["grouped_mm"] = functools.partial(step, functools.partial(by_torch, experts, counts), rows, rows_grad,
                                               list(experts.parameters()))  # fmt: skip
    if most * shape.experts * shape.width * 2 < 8 * GIB:
        blocks = numbers(shape.experts, most, shape.width).requires_grad_()
        made["ours, padded"] = functools.partial(step, padded, x, grad, [*parameters, *padded.parameters()])
        made["bmm, padded"] = functools.partial(step, functools.partial(by_blocks, experts), blocks,
                                                torch.ones_like(blocks), list(experts.parameters()))  # fmt: skip
    return made, counts.tolist()


def measured(shape: LayerShape, dtype: str, device: torch.device, repeats: int, *, even: bool) -> list[dict[str, Any]]:
    """A row for each way: they take turns, every other round backwards."""
    made, counts = ways(shape, dtype, device, even=even)
    timer, found = timer_of(device), defaultdict(list)
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for number in range(2 + repeats):
        for name in list(made) if number % 2 else list(reversed(made)):
            synchronise()
            begin = time.perf_counter()
            made[name]()
            synchronise()
            wall = (time.perf_counter() - begin) * 1e3
            _, gpu, _ = sample(timer, made[name])
            if number >= 2:
                found[name].append((wall, gpu))
    rows = []
    for name in made:
        times = found[name]
        wall, gpu = np.array(times).T
        rows.append({
            "way": name, "dtype": dtype, "even": even, "counts": [min(counts), max(counts)],
            "wall_ms": float(np.median(wall)), "wall_range": [float(wall.min()), float(wall.max())],
            "gpu_ms": float(np.median(gpu)), "gpu_range": [float(gpu.min()), float(gpu.max())],
            "tflops": shape.flop() / float(np.median(wall)) / 1e9, "peak_bytes": peak_bytes(device, made[name]),
        })  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    heads = ("recipe", "dtype", "rows of an expert", "way", "wall ms", "gpu ms", "TFLOP/s", "peak GiB")
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        times = [f"{row[f'{name}_ms']:.2f} ({row[f'{name}_range'][0]:.2f} - {row[f'{name}_range'][1]:.2f})"
                 for name in ("wall", "gpu")]  # fmt: skip
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GIB:.1f}"
        least, most = row["counts"]
        lines.append((row["recipe"], row["dtype"], f"{least} to {most}", row["way"], *times, f"{row['tflops']:.0f}",
                      peak))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(words: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SHAPES)}; default: all but tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bf16", choices=sorted(DTYPES))
    parser.add_argument("--even", action="store_true", help="all experts alike")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of all that was found")
    args = parser.parse_args(words)
    device = torch.device(args.device)
    report: dict[str, Any] = {"about": about(device), "shapes": {n: asdict(s) for n, s in SHAPES.items()}, "rows": []}
    for name in args.names or [each for each in SHAPES if each != "tiny"]:
        for row in measured(SHAPES[name], args.dtype, device, args.repeats, even=args.even):
            report["rows"].append({"recipe": name, **row})
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["rows"]))
    return 0
