"""local: one fresh process per launch imports the transport's library once and forks the ranks.

For CPU ranks on one machine: 4 gloo ranks start in about the time of one `import torch`, where torchrun imports it
five times. Not for GPUs: CUDA does not survive a fork.
"""

from __future__ import annotations

import sys
from pathlib import Path

from commbench.launch.job import Job

PROGRAM = "commbench.measure.fork"


def command(job_path: Path, job: Job) -> list[str]:
    """Return what starts the ranks of `job`, whose file is `job_path`."""
    return [sys.executable, "-m", PROGRAM, str(job_path)]


def explain(log: str) -> str:
    """Return "": exits.jsonl has what became of ranks."""
    return ""
