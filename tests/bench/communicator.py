"""What a communicator costs beyond the chosen algorithm's own call, with a library that does nothing.

Rounds of both, one after the other in the same process; the table has the median of their differences, and between
which values half of them lie. `make bench ARGS="communicator"`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support import idle_communicator
from tests.support.idle_communicator import Idle

CALLS, ROUNDS = 2000, 101


def seen(comm: Any, transport: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same tensors in every call, beside the call that the algorithm has made ready for them."""
    import torch

    out, inp = torch.empty(64, 16), torch.empty(64, 16)
    ready = transport.ready("all_to_all", out.view(-1).view(torch.uint8), inp.view(-1).view(torch.uint8), step="all")

    def ours() -> None:
        for _ in range(CALLS):
            comm.all_to_all(out, inp)

    def bare() -> None:
        for _ in range(CALLS):
            if (work := ready()) is not None:
                work.wait()

    return ours, bare


def fresh(comm: Any, transport: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Tensors that are seen for the first time, beside the algorithm on their bytes."""
    import torch

    pairs = [(torch.empty(64, 16), torch.empty(64, 16)) for _ in range(CALLS)]
    data = [(out.view(-1).view(torch.uint8), inp.view(-1).view(torch.uint8)) for out, inp in pairs]
    start = functools.partial(transport.all_to_all, step="all")

    def ours() -> None:
        comm._calls.seen.clear()
        comm._calls._once.clear()
        for out, inp in pairs:
            comm.all_to_all(out, inp)

    def bare() -> None:
        for out, inp in data:
            start(out, inp).wait()

    return ours, bare


def uneven(comm: Any, transport: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """all_to_allv on fresh tensors, with counts of their own, beside the library's call on their bytes."""
    import torch

    pairs = [(torch.empty(64, 16), torch.empty(64, 16)) for _ in range(CALLS)]
    data = [(out.view(-1).view(torch.uint8), inp.view(-1).view(torch.uint8)) for out, inp in pairs]
    rows, nbytes = [16, 8, 24, 16], [1024, 512, 1536, 1024]

    def ours() -> None:
        comm._calls.seen.clear()
        comm._calls._once.clear()
        for out, inp in pairs:
            comm.all_to_allv(out, inp, rows, rows)

    def bare() -> None:
        for out, inp in data:
            transport.all_to_allv(out, inp, nbytes, nbytes, step="all").wait()

    return ours, bare


def difference_us(ours: Callable[[], None], bare: Callable[[], None]) -> tuple[float, float, float]:
    """Microseconds a call: the median, and the quartiles."""
    found = []
    for number in range(ROUNDS + 5):
        times = {}
        for call in (ours, bare) if number % 2 else (bare, ours):
            begin = time.perf_counter_ns()
            call()
            times[call] = time.perf_counter_ns() - begin
        found.append((times[ours] - times[bare]) / CALLS / 1e3)
    low, middle, high = np.percentile(found[5:], [25, 50, 75])
    return float(middle), float(low), float(high)


def measure() -> dict[str, tuple[float, float, float]]:
    transport = Idle()
    comm = idle_communicator.communicator(transport)
    kinds = {"tensors seen before": seen, "fresh tensors": fresh, "fresh tensors, all_to_allv": uneven}
    return {name: difference_us(*make(comm, transport)) for name, make in kinds.items()}


def main() -> None:
    print(f"{'':<28} {'median':>8} {'half of the rounds':>20}   (us a call above the algorithm's own)")
    for name, (middle, low, high) in measure().items():
        print(f"{name:<28} {middle:>8.2f} {f'{low:.2f} .. {high:.2f}':>20}", flush=True)
