"""What `moe` and `helloworld` share: samples of a step on a GPU or a CPU, its memory, and a step taken apart."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from commbench.transports.cuda.timer import EventTimer
from commbench.transports.host_clock import HostMarks
from moe_ref import fused

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARMUP = 2
OURS = ("sparse", "fused")
Stage = tuple[str, Callable[[Tensor], Tensor]]
Take = Callable[[str, Callable[[], Any]], Any]


class HostTimer(HostMarks):
    """Stands in for `EventTimer` on a CPU."""

    def barrier(self) -> None:
        return None

    def synchronize(self) -> None:
        return None


def ours(device: torch.device) -> tuple[str, ...]:
    """Our ways to dispatch that run there."""
    return OURS if not fused.unsupported(device) else OURS[:1]


def timer_of(device: torch.device) -> Any:
    if device.type == "cuda":
        return EventTimer(lambda: None, torch.cuda.synchronize)
    return HostTimer()


def sample(timer: Any, call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `call` gives, its time and the host's part of it: ms."""
    timer.barrier()
    begin, since = timer.mark(), time.perf_counter_ns()
    found = call()
    until, end = time.perf_counter_ns(), timer.mark()
    timer.synchronize()
    return found, timer.between_us(begin, end) / 1e3, (until - since) / 1e6


def peak_bytes(device: torch.device, call: Callable[[], Any]) -> int | None:
    """What `call` needs at once above what is there before it; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def product_rate(timer: Any, dtype: str, device: torch.device, length: int = 8192, repeats: int = 10) -> float:
    """FLOP/s of a square product of random numbers of this length."""
    left, right = (torch.randn(length, length, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(left)
    call = functools.partial(torch.mm, left, right, out=out)
    times = [sample(timer, call)[1] for _ in range(WARMUP + repeats)]
    return float(2 * length**3 / np.median(times[WARMUP:]) * 1e3)


def through(take: Take, stages: Sequence[Stage], value: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Forward: name, input and output of each stage, cut off from each other."""
    tape = []
    for name, function in stages:
        leaf = value.detach().requires_grad_(value.requires_grad)
        value = take(name, functools.partial(function, leaf))
        tape.append((name, leaf, value))
    return tape


def back(take: Take, tape: Sequence[tuple[str, Tensor, Tensor]], grad: Tensor) -> None:
    """Backward, from the gradient of the last output, as far as there is something to differentiate."""
    for name, leaf, value in reversed(tape):
        if not value.requires_grad:
            return
        take(f"{name} backward", functools.partial(value.backward, grad))
        if leaf.grad is None:
            return
        grad = leaf.grad


def spread(row: Mapping[str, Any], name: str, form: str) -> str:
    if f"{name}_low" not in row:
        return "not estimable"
    return f"{row[f'{name}_low']:{form}}..{row[f'{name}_high']:{form}}"


def stage_table(stages: Mapping[str, float] | None) -> str:
    if stages is None:
        return "out_of_memory"
    lines = [f"  {name:<22} {took:8.3f}" for name, took in stages.items()]
    return "\n".join([*lines, f"  {'all together':<22} {sum(stages.values()):8.3f}"])


def about(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
        found["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return found
