"""What fresh data before each call do to its time, and what it costs to load and to check them; arms by turns.

kept     one pair of buffers, loaded once: each call finds input and output as the last one has left them
fresh    output poisoned and input written before each call, output compared after it: what `isolated` does
input    input written before each call
load     output poisoned and input written before each call, nothing compared

With --pipelined: 20 calls back to back, on one pair of buffers, and on two by turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import numpy as np

from commbench import algorithms, collectives, transports
from commbench.layout import Layout
from commbench.measure import buffers
from commbench.measure.loop import PIPELINED_CALLS
from commbench.measure.samples import Before, take
from commbench.measure.verify import Checker
from commbench.rank_info import RankInfo
from commbench.spec import Spec
from commbench.units import format_size
from tests.bench.bare import ratio
from tests.support.ranks import on_ranks

SIZES = tuple(1 << n for n in range(6, 25, 2))
ROUNDS, EACH = 24, 20
QUANTILE = 0.1  # of the samples of a round: what a busy machine adds is in the others
ARMS = ("kept", "fresh", "input", "load")


class Load(Before):
    """Loads and compares as its arm says."""

    def __init__(self, arm: str, checker: Checker, pair: buffers.Pair) -> None:
        self._arm, self._checker, (self._out, self._inp) = arm, checker, pair
        self._salt = 0
        self._loaded = False
        self.wrong: list[Any] = []

    def before(self, call: int) -> None:
        self.settle()
        self._salt += 1
        if self._arm in ("fresh", "load"):
            self._checker.poison(self._out, self._salt)
        if self._arm != "kept":
            self._checker.fill_input(self._inp, self._salt)
        self._loaded = self._arm == "fresh"

    def settle(self) -> None:
        if self._loaded:
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
                    times[arm].append(float(np.quantile(every[:, 1:].max(axis=0), QUANTILE)))
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


def compare_pairs(transport: Any, algorithm: str, ranks: int) -> None:
    """Print the slowest rank's time of calls back to back, on one pair of buffers and on two."""
    collective = collectives.get("all_to_all")
    for size in SIZES:
        spec = Spec(collective="all_to_all", dtype="fp32", size_bytes=size, layout=Layout(1, ranks))
        transport.case_begins({"size_bytes": size})
        pairs = buffers.allocate(transport, collective, spec, transport.rank, 2, one_sided=False)
        transport.publish()
        checker = Checker(transport, collective, spec, transport.rank, 1)
        for salt, (_, inp) in enumerate(pairs):
            checker.fill_input(inp, salt)
        bound = algorithms.get("all_to_all", algorithm).prepare(transport.world, spec)
        arms = {"one": bound.bind(pairs[:1]), "two": bound.bind(pairs)}
        timer = transport.timer("pipelined")
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for number in range(ROUNDS + 2):
            for arm in arms if number % 2 else list(arms)[::-1]:
                take(timer, arms[arm], 0, 1, PIPELINED_CALLS)
                batch = take(timer, arms[arm], 0, 5, PIPELINED_CALLS)
                if number >= 2:
                    every = transport.all_gather(batch.columns[0])
                    times[arm].append(float(np.quantile(every.max(axis=0), QUANTILE)))
        bound.close()
        if transport.rank == 0:
            centre, low, high = ratio(times["two"], times["one"])
            one_us = np.median(times["one"])
            print(f"{format_size(size):>8} {one_us:10.1f}  {centre:6.3f} {low:.3f}-{high:.3f}", flush=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench fresh", description=__doc__)
    parser.add_argument("--transport", choices=("gloo", "mpi", "nccl"), default="gloo")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--algorithm", default="direct")
    parser.add_argument("--pipelined", action="store_true")
    given = parser.parse_args(words or [])
    head = f"{'size':>8} {'one us':>10}  two / one"
    if not given.pipelined:
        arms = "  ".join(f"{arm + ' / kept':>18}" for arm in ARMS[1:])
        head = f"{'size':>8} {'kept us':>10}  {arms}  {'aside us':>10}"
    print(f"{given.transport}, {given.ranks} ranks, {given.algorithm}; {ROUNDS} rounds\n{head}", flush=True)
    if given.transport != "mpi":
        made = compare_pairs if given.pipelined else compare
        on_ranks(given.transport, given.ranks, lambda transport: made(transport, given.algorithm, given.ranks))
        return 0
    asked = [given.algorithm, "pairs" if given.pipelined else "data"]
    command = ["mpiexec", "-n", str(given.ranks), sys.executable, "-m", "tests.bench.fresh", *asked]
    return subprocess.run(command, check=False).returncode


def under_mpi(algorithm: str, what: str) -> None:
    """This process is a rank already."""
    from mpi4py import MPI

    rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    transport = transports.load("mpi")({"layout": (1, size)})
    transport.connect(RankInfo(rank=rank, size=size, local_rank=rank, local_size=size, launcher="bench"))
    (compare_pairs if what == "pairs" else compare)(transport, algorithm, size)
    transport.close()


if __name__ == "__main__":
    under_mpi(*sys.argv[1:])
