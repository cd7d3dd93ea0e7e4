"""What a recorder costs: a call on a group that is recorded beside one on torch's own, and a step of a small training.

    nice python -m tests.bench record        # resumable: what is done is kept in results/record-bench.jsonl

Both in one process, over gloo, in alternating order: blocks of 50 calls, or single steps, so that what else runs on
the machine meets both. A launch gives the median over its pairs; the table has the median of 12 launches and its 95 %
interval. Of a step also what the recorder adds to the processor's time of the thread that makes it, which does not
count what others take from it: that resolves 1 % on a machine that is busy, and the step's time on a quiet one.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.kept import by_launch, said
from tests.support.ranks import forked

FILE = Path("results/record-bench.jsonl")
LAUNCHES = 12
CALLS, PAIRS = 50, 400  # calls of a block, and pairs of blocks
STEP_PAIRS = 150
WARMUP = 10  # pairs
LAYERS = 4  # of a step: each with two exchanges forward and two backward
Pair = tuple[float, float]  # on torch's own group, and recorded


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


def paired(arms: tuple[Callable[[], None], Callable[[], None]], pairs: int) -> tuple[list[Pair], list[Pair]]:
    """Microseconds of both arms, pair by pair, in alternating order: by the clock, and of this thread's processor."""
    wall, processor = [], []
    for number in range(pairs + WARMUP):
        took, used = [0.0, 0.0], [0.0, 0.0]
        for arm in (0, 1) if number % 2 else (1, 0):
            began, spent = time.perf_counter_ns(), time.thread_time_ns()
            arms[arm]()
            used[arm] = (time.thread_time_ns() - spent) / 1e3
            took[arm] = (time.perf_counter_ns() - began) / 1e3
        wall.append((took[0], took[1]))
        processor.append((used[0], used[1]))
    return wall[WARMUP:], processor[WARMUP:]


def calls(me: int, folder: Path, async_op: bool, uneven: bool) -> dict[str, float]:
    """Exchanges of 4 KiB in a group of one rank, nothing but the way there: microseconds of one."""
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
    times = np.array(paired((arm(plain), arm(recorded)), PAIRS)[0]) / CALLS
    return {"own": float(np.median(times[:, 0])), "more": float(np.median(times[:, 1] - times[:, 0]))}


def steps(me: int, folder: Path) -> dict[str, float]:
    """Steps of two ranks: exchanges of 64 KiB between matrix products, then a sum of all gradients."""
    import torch
    import torch.distributed as dist

    from commbench.backend import observer

    inp, out, weight = torch.ones(128, 128), torch.empty(128, 128), torch.ones(128, 512)

    def arm(group: Any, ended: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(4 * LAYERS):
                dist.all_to_all_single(out, inp, group=group)
                (out @ weight) @ weight.T
            dist.all_reduce(weight, group=group)
            weight.fill_(1.0)
            ended()

        return run

    plain, recorded = groups(me, 2, folder)
    recorder: Any = observer.current
    both = paired((arm(plain, lambda: None), arm(recorded, recorder.step_said)), STEP_PAIRS)
    wall, processor = (np.array(pairs) for pairs in both)
    return {
        "own": float(np.median(wall[:, 0])),
        "more": float(100 * np.expm1(np.median(np.log(wall[:, 1] / wall[:, 0])))),
        "processor own": float(np.median(processor[:, 0])),
        # A mean, as the few steps at whose end the file is written count with what they take.
        "processor": float(np.mean(processor[:, 1] - processor[:, 0])),
        "processor median": float(np.median(processor[:, 1] - processor[:, 0])),
    }


def launch(size: int, async_op: bool, uneven: bool) -> dict[str, float]:
    """What rank 0 has measured in one launch: of steps on two ranks, of calls on one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def rank(me: int) -> None:
            found = steps(me, folder) if size > 1 else calls(me, folder, async_op, uneven)
            if me == 0:
                (folder / "answer").write_text(json.dumps(found))

        codes = forked(size, rank)
        if any(codes):
            raise RuntimeError(f"ranks ended with {codes}")
        answer: dict[str, float] = json.loads((folder / "answer").read_text())
        return answer


def main() -> None:
    of_calls = [(1, async_op, uneven) for async_op in (False, True) for uneven in (False, True)]
    of_steps = (2, False, False)
    found = by_launch(FILE, [*of_calls, of_steps], LAUNCHES, launch)
    print(f"median of {LAUNCHES} launches [95 %]              own    more when recorded")
    for kind in of_calls:
        what = f"{'uneven ' if kind[2] else ''}exchange, {'async' if kind[1] else 'sync'}"
        own = float(np.median([one["own"] for one in found[kind]]))
        print(f"{what:<34} {own:9.1f} us   {said(one['more'] for one in found[kind])} us")
    own = float(np.median([one["own"] for one in found[of_steps]])) / 1e3
    many = 4 * LAYERS + 1
    what = f"step of {many} calls, 2 ranks"
    print(f"{what:<34} {own:9.2f} ms   {said(one['more'] for one in found[of_steps])} %")
    ways = {"processor median": "  the thread's processor, a call", "processor": "  the same, files included"}
    for key, what in ways.items():
        print(f"{what:<34} {'':12}   {said(one[key] / many for one in found[of_steps])} us")
    shares = [100 * one["processor"] / one["own"] for one in found[of_steps]]
    print(f"{'  of the step that is':<34} {'':12}   {said(shares)} %")
