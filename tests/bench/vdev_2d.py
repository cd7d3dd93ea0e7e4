"""dispatch and combine by torch's NVSHMEM all_to_all_vdev_2d: the way, and its time, for `row_puts`.

`bare`: rows that lie sorted by expert, a copy for each choice, to ranks and experts; and back by its `_offset`.
`permuted`: with the sorting in front of it; and back with each token's sum over its choices behind it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from commbench_kernels import routed
from commbench_kernels.routed import RowShape

from commbench import collectives
from commbench.collectives import routing
from commbench.layout import Layout
from commbench.machine import gpus
from commbench.spec import Spec
from tests.bench.vdev import ENVIRONMENT

SHAPES = (
    (4096, 4096, 1, 8),
    (4096, 4096, 8, 32),
)  # tokens, elements, experts of a token, experts: 16 of a rank at most
SAMPLES, WARMUP = 40, 5
_LONGEST_S = 90


def spec_of(tokens: int, width: int, top_k: int, experts: int, ranks: int) -> Spec:
    of, layout = collectives.get("dispatch"), Layout(1, ranks)
    asked = {key: item.default for key, item in of.arguments.items() if item.default is not None}
    row = 2 * width
    size, arguments = of.settle(tokens * row, layout, {**asked, "row_bytes": row, "top_k": top_k, "experts": experts})
    return Spec(collective="dispatch", dtype="bf16", size_bytes=size, layout=layout, arguments=arguments)


def of_rank(rank: int, ranks: int, store: str) -> None:
    import torch
    import torch.distributed as dist
    import torch.distributed._symmetric_memory as symm_mem

    from commbench.measure.samples import take
    from commbench.transports.cuda.timer import EventTimer
    from commbench.transports.gloo import gather

    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    torch.cuda.set_stream(torch.cuda.Stream())
    one = torch.zeros(1, device=device)
    symm_mem.set_backend("NVSHMEM")
    dist.init_process_group("nccl", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks, device_id=device)
    votes = dist.new_group(backend="gloo")
    world = dist.group.WORLD
    assert world is not None

    def together() -> None:
        torch.cuda.synchronize()
        dist.barrier(group=votes)

    timer = EventTimer(lambda: dist.all_reduce(one), together)
    for tokens, width, top_k, experts in SHAPES:
        shape = RowShape(ranks=ranks, tokens=tokens, top_k=top_k, per_rank=experts // ranks, row_bytes=2 * width,
                         by_expert=True)  # fmt: skip
        chosen, _ = routing.routing_of(spec_of(tokens, width, top_k, experts, ranks))
        source, token, _ = routed.order(chosen, rank, shape)
        most = max(len(routed.order(chosen, other, shape)[0]) for other in range(ranks))
        x = (
            (torch.arange(tokens, device=device)[:, None] + 7 * rank)
            .remainder(251)
            .to(torch.bfloat16)
            .expand(-1, width)
        )
        x = x.contiguous()
        right = (torch.from_numpy(token + 7 * source).to(device)).remainder(251).to(torch.bfloat16)
        flat = torch.from_numpy(chosen[rank].reshape(-1).astype("int64")).to(device)
        order = flat.argsort(stable=True)
        rows, place = order // top_k, order.argsort()
        sorted_rows, back = (symm_mem.empty(tokens * top_k, width, dtype=x.dtype, device=device) for _ in range(2))
        out = symm_mem.empty(most, width, dtype=x.dtype, device=device)
        sent = symm_mem.empty(experts, dtype=torch.int64, device=device)
        sent.copy_(flat.bincount(minlength=experts))
        came, returned = (symm_mem.empty((2, experts), dtype=torch.int64, device=device) for _ in range(2))
        weights = torch.full((tokens, top_k, 1), 1 / top_k, dtype=x.dtype, device=device)
        y = torch.empty_like(x)
        torch.index_select(x, 0, rows, out=sorted_rows)
        name = world.group_name

        def bare(inp: Any = sorted_rows, out: Any = out, sent: Any = sent, came: Any = came, name: str = name) -> None:
            torch.ops.symm_mem.all_to_all_vdev_2d(inp, out, sent, came, name)

        def permuted(bare: Any = bare, x: Any = x, rows: Any = rows, inp: Any = sorted_rows) -> None:
            torch.index_select(x, 0, rows, out=inp)
            bare()

        def bare_back(out: Any = out, back: Any = back, came: Any = came, to: Any = returned, name: str = name) -> None:
            torch.ops.symm_mem.all_to_all_vdev_2d_offset(out, back, came, to, name)

        def summed(bare_back: Any = bare_back, back: Any = back, place: Any = place, y: Any = y, weights: Any = weights,
                   many: bool = top_k > 1) -> None:  # fmt: skip
            bare_back()
            if many:
                torch.sum(back[place].view(weights.shape[0], weights.shape[1], -1) * weights, 1, out=y)
            else:
                torch.index_select(back, 0, place, out=y)

        ways = {
            "dispatch bare": bare,
            "dispatch permuted": permuted,
            "combine bare": bare_back,
            "combine summed": summed,
        }
        for label, call in ways.items():
            together()
            call()
            together()
            wrong = 0
            if label == "dispatch permuted":
                wrong = int((out[: len(right)] != right[:, None]).sum())
            elif label == "combine summed":
                wrong = int((y != x).sum())
            times = gather(votes, ranks, take(timer, [call], 0, WARMUP + SAMPLES, 1).columns[0])[:, WARMUP:]
            wrong = int(gather(votes, ranks, [float(wrong)]).sum())
            if rank == 0:
                median = statistics.median(times.max(axis=0).tolist())
                print(f"  {tokens} x {width} bf16, top-{top_k} of {experts}: all_to_all_vdev_2d {label:<18} "
                      f"{median:9.2f} us, {wrong} wrong", flush=True)  # fmt: skip
    together()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench vdev_2d", description=__doc__)
    parser.add_argument("--gpus", type=int, default=gpus.count(os.environ))
    parser.add_argument("--of", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(words or [])
    if given.of:
        try:
            of_rank(int(given.of[2]), int(given.of[0]), given.of[1])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # its memory is freed by all ranks together, or not at all
    if given.gpus < 2:
        print("needs two GPUs")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.bench", "vdev_2d", "--of", str(given.gpus), str(Path(folder) / "store")]
        ranks = [
            subprocess.Popen([*command, str(rank)], env={**os.environ, **ENVIRONMENT}) for rank in range(given.gpus)
        ]
        try:
            codes = [process.wait(_LONGEST_S) for process in ranks]
            return int(any(codes))
        finally:
            for process in ranks:
                process.kill()
