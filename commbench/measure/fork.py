"""What the launcher `local` starts: one process imports the transport's library once and forks the ranks of a launch.

`python -m commbench.measure.fork ORDER.json`
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time

from commbench import transports
from commbench.launch.job import EXITS, Job
from commbench.measure.rank import RANK_FAILED, start_rank
from commbench.processes import cleanup
from commbench.processes.ended import by_signal
from commbench.processes.orphans import die_with_parent, exit_if_orphaned
from commbench.rank_info import RankInfo
from commbench.run_folder import append_line

_GRACE_S = 0.3  # from the first failed rank to the end of the others: time to tell what they saw


def main() -> None:
    die_with_parent()
    job = Job.load(sys.argv[1])
    exit_if_orphaned(job.parent_pid, job.parent_started)
    if job.program:
        # A signal to the whole tree asks the program to end in its own way; the parent ends this process by SIGKILL.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    size = job.setup.layout.ranks
    shared = transports.load(job.setup.transport).before_fork(size)
    if job.program:
        importlib.import_module(job.program)  # once, and not by every rank
    rendezvous = cleanup.rendezvous(job.folder)
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
                rank=rank,
                size=size,
                local_rank=rank,
                local_size=size,
                launcher="local",
                rendezvous=f"file:{rendezvous}",
            )
            os._exit(start_rank(job, info, shared=shared))
        ranks[pid] = rank
    del shared  # the ranks own it now; a dead rank must look dead to the others
    sys.exit(_wait(job, ranks))


def _wait(job: Job, ranks: dict[int, int]) -> int:
    """Reap all ranks; 0 if all ended well. If one fails, the others, who wait for it in vain, are ended.

    Ranks that end hard (by a signal, or without a Python error) are written to exits.jsonl: others fail because of
    them. Ranks that raise write failures.jsonl themselves, before their peers can notice.
    """
    failed = False
    deadline = float("inf")
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG if failed else 0)
        if pid == 0:
            if time.monotonic() > deadline:
                for other in ranks:
                    os.kill(other, signal.SIGKILL)
                return _reap(ranks)
            time.sleep(0.01)
            continue
        rank = ranks.pop(pid, None)
        if rank is None or status == 0:
            continue
        if not failed:
            failed, deadline = True, time.monotonic() + _GRACE_S
        if what := _hard_end(status):
            with contextlib.suppress(OSError):  # what cannot be written, the parent finds out itself
                append_line(job.folder / EXITS, json.dumps({"rank": rank, "what": what}), durable=False)
    return 1 if failed else 0


def _hard_end(status: int) -> str:
    """Say what happened to a rank that had no chance to; "" for one that said so itself."""
    if os.WIFSIGNALED(status):
        return by_signal(os.WTERMSIG(status))
    code = os.WEXITSTATUS(status)
    return "" if code == RANK_FAILED else f"exited with code {code}"


def _reap(ranks: dict[int, int]) -> int:
    while ranks:
        pid, _ = os.wait()
        ranks.pop(pid, None)
    return 1


if __name__ == "__main__":
    main()
