"""What a recorder costs: a call on a group that is recorded beside one on torch's own, and a step of a small training.

Both in the same process, one after the other, over gloo; the table has the median of their differences, and between
which values half of them lie. `make bench ARGS="record"`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.ranks import forked

CALLS, ROUNDS = 500, 41
STEPS, STEP_ROUNDS = 5, 41
LAYERS = 4  # of a step: each with two exchanges forward and two backward


def groups(me: int, size: int, folder: Path) -> tuple[Any, Any]:
    """Torch's own group of all ranks, and one that is recorded."""
    import torch
    import torch.distributed as dist

    from commbench.backend import observer
    from commbench.backend.install import install
    from commbench.backend.recorder import CallRecorder
    from commbench.record import rank_file
    from commbench.transports.plain_groups import plain_groups

    torch.set_num_threads(1)
    (folder / rank_file.FOLDER).mkdir(exist_ok=True)
    install(lambda: None)
    observer.current = CallRecorder(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=me, world_size=size)
    with plain_groups():
        plain = dist.new_group(list(range(size)))
    return plain, dist.group.WORLD


def paired(arms: tuple[Callable[[], None], Callable[[], None]], rounds: int) -> list[tuple[float, float]]:
    """Microseconds of both arms, round by round, in alternating order."""
    times = []
    for number in range(rounds):
        took = [0.0, 0.0]
        for arm in (0, 1) if number % 2 else (1, 0):
            begin = time.perf_counter_ns()
            arms[arm]()
            took[arm] = (time.perf_counter_ns() - begin) / 1e3
        times.append((took[0], took[1]))
    return times[1:]


def calls(me: int, folder: Path, *, async_op: bool, uneven: bool) -> list[tuple[float, float]]:
    """Exchanges of 4 KiB in a group of one rank: nothing but the way there."""
    import torch
    import torch.distributed as dist

    inp, out = torch.ones(1024), torch.empty(1024)
    splits = ([1024], [1024]) if uneven else ()

    def arm(group: Any) -> Callable[[], None]:
        def run() -> None:
            for _ in range(CALLS):
                work = dist.all_to_all_single(out, inp, *splits, group=group, async_op=async_op)
                if work is not None:
                    work.wait()

        return run

    plain, recorded = groups(me, 1, folder)
    return paired((arm(plain), arm(recorded)), ROUNDS)


def steps(me: int, folder: Path) -> list[tuple[float, float]]:
    """Steps of two ranks: exchanges of 64 KiB between matrix products, then a sum of all gradients."""
    import torch
    import torch.distributed as dist

    from commbench.backend import observer

    inp, out, weight = torch.ones(128, 128), torch.empty(128, 128), torch.ones(128, 512)

    def arm(group: Any, ended: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(STEPS):
                for _ in range(4 * LAYERS):
                    dist.all_to_all_single(out, inp, group=group)
                    (out @ weight) @ weight.T
                dist.all_reduce(weight, group=group)
                ended()

        return run

    plain, recorded = groups(me, 2, folder)
    recorder: Any = observer.current
    return paired((arm(plain, lambda: None), arm(recorded, recorder.step_said)), STEP_ROUNDS)


def measured(size: int, body: Callable[[int, Path], list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """What rank 0 has measured."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def rank(me: int) -> None:
            times = body(me, folder)
            if me == 0:
                (folder / "answer").write_text(json.dumps(times))

        codes = forked(size, rank)
        if any(codes):
            raise RuntimeError(f"ranks ended with {codes}")
        return [(one, two) for one, two in json.loads((folder / "answer").read_text())]


def main() -> None:
    print("                                      own      recorded   difference   half of them")
    for async_op in (False, True):
        for uneven in (False, True):
            times = measured(1, lambda me, folder, a=async_op, u=uneven: calls(me, folder, async_op=a, uneven=u))
            own, recorded = (statistics.median(pair[arm] for pair in times) / CALLS for arm in (0, 1))
            low, middle, high = np.quantile([(two - one) / CALLS for one, two in times], [0.25, 0.5, 0.75])
            what = f"{'uneven ' if uneven else ''}exchange, {'async' if async_op else 'sync'}"
            print(f"{what:<34} {own:7.1f} us {recorded:7.1f} us  {middle:7.2f} us   {low:.2f} - {high:.2f}", flush=True)
    times = measured(2, steps)
    own, recorded = (statistics.median(pair[arm] for pair in times) / STEPS / 1e3 for arm in (0, 1))
    low, middle, high = np.quantile([100 * (two / one - 1) for one, two in times], [0.25, 0.5, 0.75])
    what = f"step of {4 * LAYERS} exchanges, 2 ranks"
    print(f"{what:<34} {own:7.2f} ms {recorded:7.2f} ms  {middle:7.2f} %    {low:.2f} - {high:.2f}")
