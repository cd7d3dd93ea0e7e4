"""EPS-MoE's rule against what passes take, on one device: python -m tests.bench expert_groups [--out FILE].

One GPU has nobody to exchange with, so an exchange of rows is a copy of them to the host's pinned memory and as many
back at the same time, on streams beside the products: PCIe 5 has the rate of a 400 Gbit/s card, and copies take no
multiprocessor. Forward passes in 1, 2, 4, .. groups take turns; the rule sees exchanges and products timed alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_ref.schedules.group_rule import GroupTimes, choose

_ROUNDS, _WARM = 15, 3


class Case(NamedTuple):
    """experts of a rank, rows of each, width and hidden of their FFN."""

    name: str
    experts: int
    rows: int
    width: int
    hidden: int


CASES = (
    Case("Mixtral 8x7B, prefill", 8, 1024, 4096, 14336),
    Case("Mixtral 8x7B, decode", 8, 8, 4096, 14336),
    Case("DeepSeek-V2, prefill", 20, 1228, 5120, 1536),
    Case("DeepSeek-V2, decode", 20, 8, 5120, 1536),
    Case("DeepSeek-V2, prefill of few", 20, 128, 5120, 1536),
)
SMALL = (Case("small, prefill", 4, 64, 256, 1024), Case("small, decode", 4, 2, 256, 1024))


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="expert_groups")
    parser.add_argument("--small", action="store_true", help="shapes for a CPU")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    rows = []
    for case in SMALL if asked.small else CASES:
        rows.append(_examine(case))
        print(json.dumps(rows[-1]), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1))
    return 0


class Layer:
    """The experts of a rank, and what stands for its links."""

    def __init__(self, case: Case) -> None:
        gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        dtype = torch.bfloat16 if gpu else torch.float32
        shape = case.experts, case.rows, case.width
        options: dict[str, Any] = {"device": self.device, "dtype": dtype}
        self.w1 = torch.randn(case.experts, case.width, case.hidden, **options) / case.width**0.5
        self.w2 = torch.randn(case.experts, case.hidden, case.width, **options) / case.hidden**0.5
        self.x, self.y = torch.randn(shape, **options), torch.empty(shape, **options)
        self.sent = torch.randn(shape, **options)
        self.out_host = torch.empty(shape, dtype=dtype, pin_memory=gpu)
        self.in_host = torch.randn(shape, dtype=dtype, pin_memory=gpu)
        self.streams = [torch.cuda.Stream(), torch.cuda.Stream()] if gpu else []

    def exchange(self, part: slice, source: Tensor, target: Tensor) -> Callable[[], None]:
        """Start an exchange of the rows of some experts after what is enqueued; return what waits for it."""
        if not self.streams:
            self.out_host[part].copy_(source[part])
            target[part].copy_(self.in_host[part])
            return lambda: None
        now = torch.cuda.current_stream()
        ready = now.record_event()
        pairs = ((self.out_host[part], source[part]), (target[part], self.in_host[part]))
        for stream, (to, of) in zip(self.streams, pairs, strict=True):
            stream.wait_event(ready)
            with torch.cuda.stream(stream):
                to.copy_(of, non_blocking=True)
        done = [stream.record_event() for stream in self.streams]

        def wait() -> None:
            for event in done:
                torch.cuda.current_stream().wait_event(event)

        return wait

    def products(self, part: slice) -> None:
        torch.bmm(torch.relu_(torch.bmm(self.x[part], self.w1[part])), self.w2[part], out=self.y[part])

    def run(self, parts: Sequence[slice]) -> None:
        """Make a forward pass as `ExpertGroups` does."""
        there = [self.exchange(part, self.sent, self.x) for part in parts]
        back = []
        for part, wait in zip(parts, there, strict=True):
            wait()
            self.products(part)
            back.append(self.exchange(part, self.y, self.sent))
        for wait in back:
            wait()


def _examine(case: Case) -> dict[str, Any]:
    layer = Layer(case)
    numbers = [groups for groups in (1, 2, 4, 8, 16) if groups <= case.experts]
    cuts = {groups: _cut(case.experts, groups) for groups in numbers}
    alone: dict[int, GroupTimes] = {}
    for groups, parts in cuts.items():

        def products(parts: Sequence[slice] = parts) -> None:
            for part in parts:
                layer.products(part)

        def exchanges(parts: Sequence[slice] = parts) -> None:
            for wait in [layer.exchange(part, layer.sent, layer.x) for part in parts]:
                wait()

        exchange_us, products_us = _median_us(layer, [exchanges, products])
        alone[groups] = GroupTimes(exchange_us / groups, products_us / groups)
    passes = [lambda parts=parts: layer.run(parts) for parts in cuts.values()]
    took = dict(zip(cuts, _median_us(layer, passes), strict=True))
    rule = choose(alone)
    best = min(took, key=lambda groups: took[groups])
    return {
        "case": case.name, "experts": case.experts, "rows": case.rows, "width": case.width, "hidden": case.hidden,
        "alone_us": {groups: [round(one, 1) for one in times] for groups, times in alone.items()},
        "predicted_us": {groups: round(us, 1) for groups, us in rule.pass_us.items()},
        "took_us": {groups: round(us, 1) for groups, us in took.items()},
        "chosen": rule.groups, "why": rule.why, "fastest": best,
        "gain_predicted": round(rule.pass_us[1] / rule.pass_us[rule.groups], 3),
        "gain": round(took[1] / took[rule.groups], 3), "lost_to_fastest": round(took[rule.groups] / took[best], 3),
    }  # fmt: skip


def _cut(experts: int, groups: int) -> list[slice]:
    return [slice(experts * group // groups, experts * (group + 1) // groups) for group in range(groups)]


def _median_us(layer: Layer, calls: Sequence[Callable[[], None]]) -> list[float]:
    """Return the median of each call, in turn; behind a kernel that spins while they are enqueued, on a GPU."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(_WARM + _ROUNDS):
        for call, times in zip(calls, taken, strict=True):
            if layer.device.type == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                torch.cuda._sleep(1_000_000)
                begin.record()
                call()
                end.record()
                torch.cuda.synchronize()
                us = begin.elapsed_time(end) * 1e3
            else:
                began = time.perf_counter()
                call()
                us = (time.perf_counter() - began) * 1e6
            if number >= _WARM:
                times.append(us)
    return [statistics.median(times) for times in taken]
