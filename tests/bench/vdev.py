"""Uneven exchanges whose counts are on the GPU: torch's NVSHMEM all_to_all_vdev beside ours, the same bytes, in turn.

`counts_first` is what a layer without device-side counts has to do; `direct` and `symm_store` are told the counts. The
NVSHMEM ranks are processes of their own, as torch has one kind of symmetric memory in a process. Their call ends when
a rank has what it gets, not when all that it sends has been taken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from commbench import collectives
from commbench.collectives import splits
from commbench.layout import Layout
from commbench.machine import gpus
from commbench.units import format_size
from tests.conftest import rows_of

SIZES = (64 << 10, 1 << 20, 16 << 20, 256 << 20)
ROW = 1024  # bytes of a token: all_to_all_vdev cuts messages into up to 32 equal parts
ALPHA = 0.5
SAMPLES = 50
WARMUP = 5
_LONGEST_S = 90
ENVIRONMENT = {
    "NVSHMEM_DISABLE_NVLS": "1",
    "NVSHMEM_REMOTE_TRANSPORT": "none",
    "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME": "lo",
    "NVSHMEM_BOOTSTRAP_UID_SOCK_FAMILY": "AF_INET",
    "NCCL_NVLS_ENABLE": "0",
}


def settled(size: int, ranks: int) -> tuple[int, dict[str, Any]]:
    asked = {"splits": "zipf", "alpha": ALPHA, "row_bytes": ROW}
    size, arguments = collectives.get("all_to_allv").settle(size, Layout(1, ranks), asked)
    return size, dict(arguments)


def of_rank(rank: int, ranks: int, store: str) -> list[dict[str, Any]]:
    """Medians of the slowest rank's times, one for each size."""
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

    largest = max(SIZES)
    inp, out = (symm_mem.empty(largest, dtype=torch.uint8, device=device) for _ in range(2))
    sent = symm_mem.empty(ranks, dtype=torch.int64, device=device)
    received = symm_mem.empty((2, ranks), dtype=torch.int64, device=device)
    timer = EventTimer(lambda: dist.all_reduce(one), together)
    found = []
    for wanted in SIZES:
        size, arguments = settled(wanted, ranks)
        matrix = splits.counts(ranks, arguments)
        sent.copy_(torch.tensor(matrix[rank].tolist()))
        given = torch.cat([torch.full((n,), 16 * rank + peer + 1) for peer, n in enumerate(matrix[rank].tolist())])
        right = torch.cat([torch.full((n,), 16 * peer + rank + 1) for peer, n in enumerate(matrix[:, rank].tolist())])
        inp[: len(given)] = given.to(device)
        out.zero_()
        together()

        def call(size: int = size) -> None:
            torch.ops.symm_mem.all_to_all_vdev(inp[:size], out[:size], sent, received, world.group_name)

        times = gather(votes, ranks, take(timer, [call], 0, WARMUP + SAMPLES, 1)[0])[:, WARMUP:].max(axis=0)
        together()
        wrong = int((out[: len(right)].cpu() != right).sum())
        wrong = int(gather(votes, ranks, [float(wrong)]).sum())
        found.append({"size_bytes": size, "time_us": statistics.median(times.tolist()), "wrong": wrong})
    together()
    return found


def nvshmem(ranks: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        store, answer = str(Path(folder) / "store"), Path(folder) / "answer"
        words = [sys.executable, "-m", "tests.bench", "vdev", "--of", str(ranks), store, str(answer)]
        processes = [subprocess.Popen([*words, str(rank)], env={**os.environ, **ENVIRONMENT}) for rank in range(ranks)]
        try:
            codes = [process.wait(_LONGEST_S) for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            raise RuntimeError(f"ranks ended with {codes}")
        return list(json.loads(answer.read_text()))


def ours(ranks: int) -> list[dict[str, Any]]:
    found = []
    for size in SIZES:
        words = ["collective=all_to_allv", "splits=zipf", f"alpha={ALPHA}", f"row_bytes={ROW}", "mode=isolated"]
        words += ["algorithm=direct,counts_first,symm_store", "buffers=plain,symmetric", "launches=1", "cap=0.2"]
        words += ["nodes=1", f"ranks_per_node={ranks}", "-b", str(size), "-e", str(size), "--no-plots"]
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "commbench", "sweep", "gpu", *words, "--out", folder, "--format", "json"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
        rows = rows_of(done)
        found += [row for row in rows if row["status"] == "ok"]
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench vdev", description=__doc__)
    parser.add_argument("--gpus", type=int, default=gpus.count(os.environ))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--of", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(words or [])
    if given.of:
        ranks, store, answer, rank = int(given.of[0]), given.of[1], Path(given.of[2]), int(given.of[3])
        try:
            found = of_rank(rank, ranks, store)
            if rank == 0:
                answer.write_text(json.dumps(found))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # its memory is freed by all ranks together, or not at all
    if given.gpus < 2:
        print("needs two GPUs")
        return 0
    for number in range(given.rounds):
        for row in nvshmem(given.gpus):
            print(f"round {number + 1}  {format_size(row['size_bytes']):>9}  all_to_all_vdev (NVSHMEM) "
                  f"{row['time_us']:10.2f} us, {row['wrong']} wrong", flush=True)  # fmt: skip
        for row in ours(given.gpus):
            label = f"{row['algorithm']} {row['buffers']}"
            print(f"round {number + 1}  {format_size(row['size_bytes']):>9}  {label:<25} {row['time_us']:10.2f} us",
                  flush=True)  # fmt: skip
    return 0
