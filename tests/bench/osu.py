"""Ours over MPI against OSU's osu_alltoall on 2 ranks, the same library on both sides, in turn.

OSU's benchmarks are not on PyPI: build them with this environment's mpicc, and name the program:
make bench ARGS="osu PATH/osu_alltoall".
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from commbench.launch import mpi_library
from commbench.units import format_size
from tests.bench.bare import ratio
from tests.conftest import environment, rows_of

PER_PEER = [1, 8, 64, 1 << 10, 64 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20]  # bytes


def osu(program: Path) -> dict[int, float]:
    """Microseconds by bytes per peer: the mean over ranks of the mean over 200 calls."""
    mpiexec, times = mpi_library.find().mpiexec, {}
    for size in PER_PEER:
        command = [mpiexec, "-n", "2", str(program), "-m", f"{size}:{size}", "-i", "200", "-x", "20"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        words = next(words for line in done.stdout.splitlines() if (words := line.split()) and words[0] == str(size))
        times[size] = float(words[1])
    return times


def ours(folder: Path) -> dict[int, float]:
    """`time_us_mean` by bytes per peer, of one launch."""
    command = [sys.executable, "-m", "commbench", "sweep", "quick", "transport=mpi", "algorithm=direct", "dtype=uint8"]
    command += ["nodes=1", "ranks_per_node=2", "launches=1", "iters=200", "warmup=20", "--no-plots", "--quiet"]
    command += [f"sizes.list={','.join(str(2 * size) for size in PER_PEER)}", "--format", "json"]
    done = subprocess.run(
        command, env=environment(), cwd=folder, capture_output=True, text=True, check=True, timeout=300
    )
    rows = rows_of(done)
    return {row["size_bytes"] // 2: row["time_us_mean"] for row in rows if "case_id" in row}


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS='osu ..'")
    parser.add_argument("program", type=Path, help="osu_alltoall")
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args(words)
    times: dict[int, list[tuple[float, float]]] = {size: [] for size in PER_PEER}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            arms = [lambda: ours(Path(folder)), lambda: osu(given.program)]
            mine, theirs = (arm() for arm in arms) if number % 2 else reversed([arm() for arm in reversed(arms)])
            for size in PER_PEER:
                times[size].append((mine[size], theirs[size]))
    print(f"2 ranks, {given.rounds} launches of each in turn, us per call: median over launches")
    print(" ".join(f"{head:>13}" for head in ("per peer", "OSU", "ours", "difference", "ours/OSU", "95 % interval")))
    for size, pairs in times.items():
        mine_us, osu_us = (float(np.median([pair[side] for pair in pairs])) for side in (0, 1))
        centre, low, high = ratio([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        cells = [format_size(size), f"{osu_us:.2f}", f"{mine_us:.2f}", f"{mine_us - osu_us:+.2f}", f"{centre:.3f}"]
        print(" ".join(f"{cell:>13}" for cell in [*cells, f"{low:.3f}-{high:.3f}"]), flush=True)
    return 0
