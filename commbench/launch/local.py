"""local: one fresh process per launch imports the transport's library once and forks the ranks.

For CPU ranks on one machine: 4 gloo ranks start in about the time of one `import torch`, where torchrun imports it
five times. Not for GPUs: CUDA does not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from commbench import transports
from commbench.launch.environment import RankInfo
from commbench.launch.guard import die_with_parent, exit_if_orphaned
from commbench.launch.order import Order
from commbench.store import append_line
from commbench.worker import start_rank


def command(order_path: Path, order: Order) -> list[str]:
    return [sys.executable, "-m", "commbench.launch.local", str(order_path)]


def main() -> None:
    die_with_parent()
    order = Order.load(sys.argv[1])
    exit_if_orphaned(order.parent_pid, order.parent_started)
    size = order.outer.layout.ranks
    shared = transports.load(order.outer.transport).before_fork(size)
    rendezvous = order.folder / "rendezvous"
    sys.stdout.flush()
    me = os.getpid()
    ranks: dict[int, int] = {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            if os.getppid() != me:
                os._exit(1)
            info = RankInfo(
                rank=rank, size=size, local_rank=rank, local_size=size, launcher="local", rendezvous=str(rendezvous)
            )
            os._exit(start_rank(order, info, shared=shared))
        ranks[pid] = rank
    del shared  # the ranks own it now; a dead rank must look dead to the others
    code = _wait(order, ranks)
    rendezvous.unlink(missing_ok=True)
    sys.exit(code)


def _wait(order: Order, ranks: dict[int, int]) -> int:
    """Reap all ranks. The first that fails is written down, and the others are killed: they wait for it in vain."""
    code = 0
    while ranks:
        pid, status = os.wait()
        rank = ranks.pop(pid, None)
        if rank is None or status == 0 or code:
            continue
        code = 1
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            what = f"was killed by signal {number} ({signal.Signals(number).name})"
        else:
            what = f"exited with code {os.WEXITSTATUS(status)}"
        append_line(order.folder / "exits.jsonl", json.dumps({"rank": rank, "what": what}), durable=False)
        for other in ranks:
            os.kill(other, signal.SIGKILL)
    return code


if __name__ == "__main__":
    main()
