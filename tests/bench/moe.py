"""The layer of Tutel's announcement (Figure 1) on one GPU: `sparse`, and `fused` where it runs, beside dense baselines.

D = H = 2048, top-2, capacity factor 1, T up to 32768, forward and backward with the gradient of the input. The
announcement names neither dtype nor experts per GPU; here 2, as in the paper's layer (arXiv 2206.03382), ReLU and
biases, and a gate in fp32, as fairseq has it. What is dense costs the same whatever E is.

Ways take turns in one process, and each is compared with `sparse` before it is timed. `ms` is the GPU's time alone: a
spin before each sample hides the gaps between launches, and `host_ms` is what the host needed. `x sparse` is the ratio
with its 95 % interval, of samples of one process. `peak` is what a step needs above model and input. The bound is that
of the experts' products, at the rate of a large product of the same dtype, measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from commbench import stats
from commbench.errors import UsageError
from moe_ref import FFN, Capacity, Gate, GateConfig, MoE, dispatch
from tests.bench.fairseq import Fairseq
from tests.bench.steps import (
    DTYPES,
    WARMUP,
    Stage,
    about,
    back,
    ours,
    peak_bytes,
    product_rate,
    sample,
    spread,
    stage_table,
    through,
    timer_of,
)

WAYS = ("sparse", "fairseq_einsum", "fairseq_einsum_tc")
# How far, in norm, the output of a way may be from `sparse`'s. Gradients may be further: what is rounded before ReLU
# turns some of its signs, and an error of 0.3 % in what experts get becomes 3 % in what they give back.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-2}
TOLERANCE_TC = 1e-2
FURTHER = 10
AUXILIARY = 0.01  # weight of the load-balancing loss
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Figure:
    """What does not change from row to row."""

    width: int = 2048
    hidden: int = 2048
    experts: int = 2
    top_k: int = 2
    factor: float = 1.0

    def flop(self, tokens: int, products: int = 6) -> float:
        """Of the experts: two products forward, four back, or three where the input needs no gradient."""
        return 2.0 * products * self.top_k * self.factor * tokens * self.width * self.hidden


def layers(
    figure: Figure, dtype: str, device: torch.device, ways: Sequence[str] = WAYS, fairseq: Path | None = None
) -> dict[str, MoE | Fairseq]:
    """One layer for each way, all with the same parameters; with its folder, fairseq's own as the last."""
    generator = torch.Generator().manual_seed(1)
    capacity = Capacity("fairseq", figure.factor)
    gate = Gate(figure.width, GateConfig(experts=figure.experts, top_k=figure.top_k, capacity=capacity),
                generator=generator)  # fmt: skip
    experts = FFN(figure.experts, figure.width, figure.hidden, activation="relu", dtype=DTYPES[dtype],
                  generator=generator)  # fmt: skip
    made: dict[str, MoE | Fairseq] = {way: MoE(gate, experts, permute=way).to(device) for way in ways}
    if fairseq is not None:
        made["fairseq"] = Fairseq(fairseq, MoE(gate, experts)).to(device)
    return made


def step(layer: MoE | Fairseq, x: Tensor, grad: Tensor) -> Tensor:
    """Forward and backward; the output."""
    y, routing = layer(x)
    auxiliary = routing.losses["gshard"]
    torch.autograd.backward([y, auxiliary], [grad, torch.full_like(auxiliary, AUXILIARY)])
    return y.detach()


def forget(layer: MoE | Fairseq, x: Tensor) -> None:
    layer.zero_grad(set_to_none=True)
    x.grad = None


def results(layer: MoE | Fairseq, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The output and all gradients of a step."""
    forget(layer, x)
    y = step(layer, x, grad)
    assert x.grad is not None
    grads = layer.gradients() if isinstance(layer, Fairseq) else (p.grad for p in layer.parameters())
    found = [y, x.grad, *(grad for grad in grads if grad is not None)]
    forget(layer, x)
    return found


def apart(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest distance of two tensors, relative to the norm of the right one; nan is infinitely far."""
    far = [float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-30))
           for a, b in zip(found, right, strict=True)]  # fmt: skip
    return max(distance if distance == distance else float("inf") for distance in far)


def clear(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def or_too_large(call: Callable[[], Any]) -> Any:
    """What `call` gives, or None where memory ran out. The error is gone then, with its frames' tensors."""
    try:
        return call()
    except torch.OutOfMemoryError:
        return None


def compared(
    figure: Figure, dtype: str, tokens: int, device: torch.device, timer: Any, *, rounds: int, seconds: float,
    ways: Sequence[str] = WAYS, fairseq: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each way."""
    made = layers(figure, dtype, device, ways, fairseq)
    ways = tuple(made)
    x, grad = inputs(figure, dtype, tokens, device)
    rows = {way: {"tokens": tokens, "dtype": dtype, "way": way, "status": "ok", "reason": ""} for way in ways}
    right: list[Tensor] | None = None
    for way, layer in made.items():
        clear(device)
        found = or_too_large(functools.partial(results, layer, x, grad))
        if found is None:
            rows[way]["status"] = "out_of_memory"
        elif right is None:
            right = found
        else:
            output, gradients = apart(found[:1], right[:1]), apart(found[1:], right[1:])
            rows[way] |= {"distance": output, "distance_of_gradients": gradients}
            allowed = TOLERANCE_TC if way.endswith("_tc") else TOLERANCE[dtype]
            if output > allowed or gradients > FURTHER * allowed:
                reason = f"{output:.1e} from {ways[0]}, its gradients {gradients:.1e}"
                rows[way] |= {"status": "wrong_result", "reason": reason}
        del found
        forget(layer, x)
    del right
    for way, layer in made.items():
        clear(device)
        if rows[way]["status"] == "ok":
            once = functools.partial(step, layer, x, grad)
            rows[way]["peak_bytes"] = or_too_large(functools.partial(peak_bytes, device, once))
        forget(layer, x)
    alive = [way for way in ways if rows[way]["status"] == "ok"]
    times, hosts = take_turns(timer, {way: made[way] for way in alive}, x, grad, rounds, seconds)
    for way in alive:
        if not times[way]:
            rows[way]["status"] = "out_of_memory"  # beside what the others keep
            continue
        rows[way] |= described(times[way])
        rows[way]["host_ms"] = float(np.median(hosts[way]))
        if way != ways[0] and times[ways[0]]:
            compare = stats.ratio([np.array(times[way])], [np.array(times[ways[0]])])
            if compare is not None:
                rows[way] |= {"ratio": compare.value, "ratio_low": compare.low, "ratio_high": compare.high}
    return list(rows.values())


def inputs(figure: Figure, dtype: str, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens that need a gradient, and the gradient of the output: normal."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(tokens, figure.width, generator=generator).to(device, DTYPES[dtype]).requires_grad_()
    return x, torch.randn(tokens, figure.width, generator=generator).to(device, DTYPES[dtype])


def take_turns(
    timer: Any, made: Mapping[str, MoE | Fairseq], x: Tensor, grad: Tensor, rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Times and host times of each way, ms: every other round backwards, until the rounds or the seconds are over."""
    times: dict[str, list[float]] = {way: [] for way in made}
    hosts: dict[str, list[float]] = {way: [] for way in made}
    alive, until = list(made), time.monotonic() + seconds
    for number in range(WARMUP + rounds):
        if number > WARMUP + 6 and time.monotonic() > until:
            break
        for way in list(alive) if number % 2 else list(reversed(alive)):
            layer = made[way]
            forget(layer, x)
            found = or_too_large(functools.partial(sample, timer, functools.partial(step, layer, x, grad)))
            if found is None:
                alive.remove(way)
                times[way].clear()
                clear(x.device)
            elif number >= WARMUP:
                times[way].append(found[1])
                hosts[way].append(found[2])
        if not alive:
            break
    return times, hosts


def described(times: Sequence[float]) -> dict[str, Any]:
    """Median and interval, ms."""
    found: dict[str, Any] = {"ms": float(np.median(times)), "samples": len(times), "interval_of": "samples"}
    if (interval := stats.interval([np.array(times)])) is not None:
        found |= {"ms_low": interval.low, "ms_high": interval.high, "interval_of": interval.of}
    return found


def taken_apart(timer: Any, layer: MoE, x: Tensor, grad: Tensor, way: str, repeats: int = 12) -> dict[str, float]:
    """Median ms of each stage of a step on one rank. Slots are in `gate`, index maps in `index`."""
    times: dict[str, list[float]] = defaultdict(list)

    def take(name: str, call: Callable[[], Any]) -> Any:
        found, took, _ = sample(timer, call)
        times[name].append(took)
        return found

    for _ in range(repeats):
        forget(layer, x)
        routing = take("gate", functools.partial(layer.gate, x))
        weights = routing.weights_TK.detach().requires_grad_()
        cut = dataclasses.replace(routing, weights_TK=weights)
        moves = take("index", functools.partial(dispatch.get(way), cut))
        stages: list[Stage] = [("dispatch", moves.dispatch), ("experts", layer.experts), ("combine", moves.combine)]
        back(take, through(take, stages, x), grad)
        take("gate backward", functools.partial(routing.weights_TK.backward, weights.grad))
    forget(layer, x)
    return {name: float(np.median(found[WARMUP:])) for name, found in times.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("tokens", "dtype", "way", "ms", "interval", "x sparse", "peak GiB", "host ms", "of bound")
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        if row["status"] != "ok":
            cells = [row["status"], row["reason"], *[""] * 4]
        else:
            cells = [f"{row['ms']:.3f}", spread(row, "ms", ".3f"), "", "", f"{row['host_ms']:.2f}", ""]
            if "ratio" in row:
                cells[2] = f"{row['ratio']:.2f} [{spread(row, 'ratio', '.2f')}]"
            if row.get("peak_bytes") is not None:
                cells[3] = f"{row['peak_bytes'] / GIB:.2f}"
            if row.get("bound_ms"):
                cells[5] = f"{100 * row['bound_ms'] / row['ms']:.0f} %"
        lines.append((str(row["tokens"]), row["dtype"], row["way"], *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench moe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", default="4096,8192,16384,32768", metavar="T,T")
    parser.add_argument("--dtypes", default="fp16,bf16", metavar="A,B")
    parser.add_argument("--ways", default="", metavar="A,B", help="default: sparse, with which others are "
                        "compared, the dense ones, and fused where it runs")  # fmt: skip
    parser.add_argument("--fairseq", type=Path, metavar="DIR", help="a checkout of fairseq's branch moe: its own layer "
                        "as one more way")  # fmt: skip
    parser.add_argument("--fp32-tokens", default="", metavar="T,T", help="more rows in fp32, at these T; TF32 is off")
    for name, value in dataclasses.asdict(Figure()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=8.0, help="for the rounds of one T and dtype, at most")
    parser.add_argument("--product", type=int, default=8192, metavar="N", help="length of the product for the bound")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of all that was found")
    return parser.parse_args(words)


def main(words: Sequence[str] = ()) -> int:
    args = arguments(words)
    device = torch.device(args.device)
    if args.fairseq and device.type == "cpu":
        raise UsageError("--fairseq on a CPU", hint="its gate counts by torch.histc of integers, which only GPUs have")
    figure = Figure(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Figure)})
    torch.backends.cuda.matmul.allow_tf32 = False
    numbers = [int(word) for word in args.tokens.split(",")]
    cases = [(dtype, tokens) for dtype in args.dtypes.split(",") if dtype for tokens in numbers]
    cases += [("fp32", int(word)) for word in args.fp32_tokens.split(",") if word]
    timer = timer_of(device)
    ways = args.ways.split(",") if args.ways else (*WAYS, *ours(device)[1:])
    report: dict[str, Any] = {"about": about(device), "figure": dataclasses.asdict(figure)}
    report |= {"flops": {}, "rows": [], "stages": []}
    began = time.monotonic()

    def keep() -> None:
        if args.out:
            report["seconds"] = time.monotonic() - began
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n")

    for dtype, tokens in cases:
        if dtype not in report["flops"]:
            report["flops"][dtype] = product_rate(timer, dtype, device, args.product)
        clear(device)
        found = compared(figure, dtype, tokens, device, timer, rounds=args.rounds, seconds=args.seconds, ways=ways,
                         fairseq=args.fairseq)  # fmt: skip
        for row in found:
            row["bound_ms"] = figure.flop(tokens) / report["flops"][dtype] * 1e3
        report["rows"] += found
        print(f"{dtype} {tokens}: " + ", ".join(f"{row['way']} {row.get('ms', row['status'])}" for row in found),
              flush=True)  # fmt: skip
        if tokens == max(numbers):
            for way in (way for way in ours(device) if way in ways):
                clear(device)
                stages = or_too_large(functools.partial(apart_of, figure, dtype, tokens, device, timer, way))
                report["stages"].append({"dtype": dtype, "tokens": tokens, "way": way, "ms": stages})
        keep()
    keep()
    print()
    print(table(report["rows"]))
    print()
    for dtype, rate in report["flops"].items():
        print(f"product of {args.product}^3 in {dtype}: {rate / 1e12:.0f} TFLOP/s")
    for entry in report["stages"]:
        print(f"\na step of {entry['way']} taken apart, {entry['dtype']}, {entry['tokens']} tokens, ms:")
        print(stage_table(entry["ms"]))
    return 0


def apart_of(figure: Figure, dtype: str, tokens: int, device: torch.device, timer: Any, way: str) -> dict[str, float]:
    (layer,) = layers(figure, dtype, device, (way,)).values()
    return taken_apart(timer, layer, *inputs(figure, dtype, tokens, device), way)
