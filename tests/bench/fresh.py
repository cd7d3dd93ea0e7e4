"""What fresh data before each call do to its time, and what it costs to load and to check them; arms by turns.

kept     one pair of buffers, loaded once: each call finds input and output as the last one has left them
fresh    output poisoned and input written before each call, output compared after it: what `isolated` does
input    input written before each call
half     as fresh, in a random half of the calls; nothing in the others
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from typing import Any

import numpy as np

from commbench import algorithms, collectives, transports
from commbench.layout import Layout
from commbench.measure import buffers
from commbench.measure.samples import Before, take
from commbench.measure.verify import Checker
from commbench.rank_info import RankInfo
from commbench.spec import Spec
from commbench.units import format_size
from tests.bench.bare import ratio
from tests.support.ranks import on_ranks

SIZES = tuple(1 << n for n in range(6, 27, 2))
ROUNDS, EACH = 40, 5
ARMS = ("kept", "fresh", "input", "half")


class Load(Before):
    """Loads and compares as its arm says."""

    def __init__(self, arm: str, checker: Checker, pair: buffers.Pair) -> None:
        self._arm, self._checker, (self._out, self._inp) = arm, checker, pair
        self._salt = 0
        self._draw = random.Random(0)
        self._loaded = False
        self.wrong: list[Any] = []
        self.aside_s = 0.0

    def before(self, call: int) -> None:
        began = time.perf_counter()
        self.settle()
        self._salt += 1
        self._loaded = self._arm in ("fresh", "input") or (self._arm == "half" and self._draw.random() < 0.5)
        if self._loaded and self._arm != "input":
            self._checker.poison(self._out, self._salt)
        if self._loaded:
            self._checker.fill_input(self._inp, self._salt)
        self.aside_s += time.perf_counter() - began

    def settle(self) -> None:
        if self._loaded and self._arm != "input":
            self.wrong.append(self._checker.compare(self._out, self._salt))
        self._loaded = False


def compare(transport: Any, algorithm: str, ranks: int) -> list[dict[str, Any]]:
    """The slowest rank's time of each sample, for each arm, by size; and the time that an arm's loading takes."""
    found = []
    for size in SIZES:
        spec = Spec(collective="all_to_all", dtype="fp32", size_bytes=size, layout=Layout(1, ranks))
        collective = collectives.get("all_to_all")
        transport.case_begins({"size_bytes": size})
        (pair,) = buffers.allocate(transport, collective, spec, transport.rank, 1, one_sided=False)
        transport.publish()
        checker = Checker(transport, collective, spec, transport.rank, 1)
        checker.fill_input(pair[1], 0)
        bound = algorithms.get("all_to_all", algorithm).prepare(transport.world, spec)
        ready, timer = bound.bind([pair]), transport.timer("isolated")
        times: dict[str, list[float]] = {arm: [] for arm in ARMS}
        aside: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for number in range(ROUNDS + 2):
            for arm in ARMS if number % 2 else ARMS[::-1]:
                data = Load(arm, checker, pair)
                take(timer, ready, 0, 2, 1, data=data)  # what the arm before has left in caches is no part of it
                batch = take(timer, ready, 0, EACH, 1, data=data)
                every = transport.all_gather([batch.aside_us / EACH, *batch.columns[0]])
                assert not any(found.elements for found in checker.read(data.wrong))
                if number >= 2:
                    times[arm].append(float(np.median(every[:, 1:].max(axis=0))))
                    aside[arm].append(float(every[:, 0].max()))
        bound.close()
        found.append({"size": size, "times": times, "aside": aside})
        if transport.rank == 0:
            tell(found[-1])
    return found


def tell(result: dict[str, Any]) -> None:
    times, aside = result["times"], result["aside"]
    cells = [f"{format_size(result['size']):>8} {np.median(times['kept']):10.1f}"]
    for arm in ARMS[1:]:
        centre, low, high = ratio(times[arm], times["kept"])
        cells.append(f"{centre:6.3f} {low:.3f}-{high:.3f}")
    cells.append(f"{np.median(aside['fresh']):10.1f}")
    print("  ".join(cells), flush=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench fresh", description=__doc__)
    parser.add_argument("--transport", choices=("gloo", "mpi", "nccl"), default="gloo")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--algorithm", default="direct")
    given = parser.parse_args(words or [])
    head = f"{'size':>8} {'kept us':>10}  " + "  ".join(f"{arm + ' / kept':>18}" for arm in ARMS[1:])
    print(f"{given.transport}, {given.ranks} ranks, {given.algorithm}\n{head}  {'aside us':>10}", flush=True)
    if given.transport != "mpi":
        on_ranks(given.transport, given.ranks, lambda made: compare(made, given.algorithm, given.ranks))
        return 0
    command = ["mpiexec", "-n", str(given.ranks), sys.executable, "-m", "tests.bench.fresh", given.algorithm]
    return subprocess.run(command, check=False).returncode


def under_mpi(algorithm: str) -> None:
    """This process is a rank already."""
    from mpi4py import MPI

    rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    transport = transports.load("mpi")({"layout": (1, size)})
    transport.connect(RankInfo(rank=rank, size=size, local_rank=rank, local_size=size, launcher="bench"))
    compare(transport, algorithm, size)
    transport.close()


if __name__ == "__main__":
    under_mpi(sys.argv[1])
