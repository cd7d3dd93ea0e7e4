"""Twenty sweeps on emulated clusters, eight of them killed at random: nothing may be left 10 s later."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.emulated.rounds import round_of

RUNS, KILLED = 20, 8
WORDS = ["quick", "transport=gloo", "fabric=emulated", "layout=2x4", "launches=2", "iters=20", "-e", "16K", "spines=2"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(RUNS):
            print(round_of(seed, Path(folder) / str(seed), WORDS, kill=seed < KILLED, longest_s=9.0), flush=True)
    print(f"{RUNS} runs, {KILLED} of them killed: nothing left")
