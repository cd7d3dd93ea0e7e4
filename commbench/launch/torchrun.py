"""torchrun as a subprocess: for GPUs, and on request."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from commbench.launch.job import Job


def command(job_path: Path, job: Job) -> list[str]:
    # Standalone finds a free port; a benchmark must never restart silently.
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--max-restarts=0",
        "--monitor-interval=0.1",
        f"--nproc-per-node={job.setup.layout.ranks}",
        "-m",
        "commbench.measure.rank",
        str(job_path),
    ]


_FAILURE = re.compile(r"rank\s+: (\d+) \(local_rank: \d+\)\s+exitcode\s+: (-?\d+)")
_ENDED_BY_TORCHRUN = -15
_RAISED = 1


def explain(log: str) -> str:
    """Return which rank ended hard, from the summary in torchrun's own log; "" if none did, or there is no summary.

    torchrun ends the other ranks within moments, often before they can write what they saw.
    """
    for rank, text in _FAILURE.findall(log):
        code = int(text)
        if code < 0 and code != _ENDED_BY_TORCHRUN:
            return f"rank {rank} was killed by signal {-code}"
        if code > _RAISED:
            return f"rank {rank} exited with code {code}"
    return ""
