"""Wrong results that come and go, planted behind a real algorithm on one rank: what becomes of the measurement."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from commbench import algorithms, collectives
from commbench.algorithms.base import Bound, BoundBase
from commbench.launch.job import Job
from commbench.layout import Layout
from commbench.measure import case as measured
from commbench.measure import recording
from commbench.measure.events import Events
from commbench.rank_info import RankInfo
from commbench.records import Case, Policy, Setup
from commbench.run_folder import RunFolder
from commbench.transports.scripted.mesh import thread_meshes
from commbench.transports.scripted.transport import Scripted
from tests.conftest import in_threads

WARMUP, SAMPLES = 2, {"isolated": 60, "pipelined": 5, "graph": 5}
RULES = ("period", "single", "random")
KINDS = ("flip", "stale", "nothing")
WAYS = (  # collective, algorithm, arguments, in place
    ("all_to_all", "direct", {}, False),
    ("all_to_all", "pairwise", {}, False),
    ("all_reduce", "direct", {"op": "sum"}, False),
    ("all_reduce", "direct", {"op": "sum"}, True),
    ("all_gather", "direct", {}, True),
    ("reduce_scatter", "direct", {"op": "max"}, False),
)


class Plant(NamedTuple):
    """A fault of one rank: in every `period`-th call, in a single one, in 1 % of them, or (rule "none") in none."""

    number: int
    transport: str
    mode: str
    rule: str
    kind: str = ""
    period: int = 0
    way: int = 0  # of `WAYS`
    ranks: int = 2
    cache: str = "warm"
    size_bytes: int = 1024

    @property
    def case(self) -> Case:
        collective, algorithm, arguments, in_place = WAYS[self.way]
        defaults = {key: default for key, (default, _) in algorithms.get(collective, algorithm).params.items()}
        size, settled = collectives.get(collective).settle(self.size_bytes, Layout(1, self.ranks), arguments)
        policy = Policy(
            warmup=WARMUP, iters=SAMPLES[self.mode], samples_min=5, samples_max=500, precision=0.05, cap_s=5.0,
            launches=1,
        )  # fmt: skip
        return Case(
            setup=Setup(transport=self.transport, nodes=1, ranks_per_node=self.ranks), collective=collective,
            algorithm=algorithm, params=defaults, arguments=dict(settled), in_place=in_place, mode=self.mode,
            buffers="plain", cache=self.cache, dtype="fp32", size_bytes=size, seed=self.number, policy=policy,
        )  # fmt: skip

    def strikes(self, call: int) -> bool:
        """Whether the call of this number is spoilt: never the checked ones before the first timed one."""
        draw = random.Random(f"{self.number}/plant")
        first = 1 + WARMUP
        if self.rule == "period":
            return call >= first and (call - draw.randrange(self.period)) % self.period == 0
        if self.rule == "single":
            return call == first + draw.randrange(SAMPLES[self.mode] * (1 if self.mode == "isolated" else 20))
        return self.rule == "random" and call >= first and random.Random(f"{self.number}/{call}").random() < 0.01


class Outcome(NamedTuple):
    """What became of a plant. struck: wrong calls up to the end of the timed ones."""

    status: str
    reason: str
    struck: int
    checked: int | None


class Faulty(BoundBase):
    """Does what the real one does, and then spoils the output of some calls."""

    def __init__(self, real: Bound, plant: Plant, rank: int, first: int) -> None:
        """first: the number of the first call: the one before the warm-up is call 0."""
        self._real, self._plant = real, plant
        self._mine = rank == plant.number % plant.ranks
        self._calls = first
        self._last: Any = None
        self.struck: list[int] = []
        self.close = real.close  # type: ignore[method-assign]

    def bind(self, pairs: Sequence[tuple[Any, Any]]) -> list[Any]:
        calls = zip(self._real.bind(pairs), pairs, strict=True)
        return [functools.partial(self._call, ready, out) for ready, (out, _) in calls]

    def _call(self, ready: Any, out: Any) -> None:
        before = _copy(out)
        if (work := ready()) is not None:
            work.wait()
        after = _copy(out)
        if self._mine and self._plant.strikes(self._calls):
            self.struck.append(self._calls)
            if self._plant.kind == "flip":
                out[random.Random(self._calls).randrange(len(out))] ^= 1
            else:
                out[...] = before if self._plant.kind == "nothing" or self._last is None else self._last
        self._last = after
        self._calls += 1


def _copy(array: Any) -> Any:
    return array.clone() if hasattr(array, "clone") else np.array(array)


_now = threading.local()
_real_prepare = measured._CaseOnRank._prepare


def _prepare(self: Any, sent: Any = None) -> Bound:
    bound = _real_prepare(self, sent)
    if sent is not None:
        return bound
    # An algorithm that declares nothing makes both calls before the warm-up itself.
    first = -1 if recording.declared(self.algorithm, self.on_wire, self.rank) is None else 0
    _now.faulty = Faulty(bound, _now.plant, self.transport.rank, first)
    return _now.faulty


def on_rank(transport: Any, folder: Path, plants: Sequence[Plant]) -> Iterator[tuple[Plant, Outcome]]:
    """Plant one after the other, on all ranks of `transport` at the same time."""
    info = RankInfo(rank=transport.rank, size=transport.size, local_rank=transport.rank, local_size=transport.size,
                    launcher="test")  # fmt: skip
    job = Job(run_dir=str(folder), attempt="a", launch=0, setup=plants[0].case.setup, cases=(), timeout_s=60.0)
    events = Events(job, transport.rank)
    try:
        with mock.patch.object(measured._CaseOnRank, "_prepare", _prepare):
            for plant in plants:
                _now.plant = plant
                found, _ = measured.measure_case(job, transport, info, plant.case, 0, events)
                last = 1 + WARMUP + SAMPLES[plant.mode] * (1 if plant.mode == "isolated" else 20)
                struck = transport.all_gather([float(sum(call < last for call in _now.faulty.struck))]).sum()
                yield plant, Outcome(str(found.status), found.reason, int(struck), found.checked_calls)
    finally:
        events.tracer.stop()


def scripted(folder: Path, plants: Sequence[Plant]) -> list[tuple[Plant, Outcome]]:
    """Plant on ranks that are threads; all plants have equally many ranks."""
    ranks = plants[0].ranks
    run = RunFolder.create(folder, "test")
    (run.path / "logs" / "a").mkdir(parents=True, exist_ok=True)
    meshes = thread_meshes(ranks)

    def rank(number: int) -> list[tuple[Plant, Outcome]]:
        transport = Scripted({"script": "", "layout": (1, ranks)})
        transport.attach(meshes[number])
        return list(on_rank(transport, run.path, plants))

    with mock.patch.object(measured._CaseOnRank, "_prepare", _prepare):
        found: list[tuple[Plant, Outcome]] = in_threads(ranks, rank)[0]
    return found


def seen(plant: Plant) -> float:
    """Return the stated probability that a fault of this kind is caught, where it happens while calls are timed."""
    if plant.mode == "isolated":
        return 1.0
    if plant.rule == "single":
        return 0.0 if plant.kind == "nothing" else 2 / (20 * SAMPLES["pipelined"])
    often = 1 / plant.period if plant.rule == "period" else 0.01
    return float(1 - (1 - often) ** (16 if plant.kind == "nothing" else 34))
