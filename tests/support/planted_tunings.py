"""Tunings whose truth is known: measured by a rule with noise, or by the scripted transport inside this process."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from commbench import algorithms, collectives
from commbench.measure import loop, verify
from commbench.profile import Scope
from commbench.records import Case, Status
from commbench.stats import Floats
from commbench.sweep import prepare
from commbench.transports.scripted.mesh import thread_meshes
from commbench.transports.scripted.transport import Scripted
from commbench.tune import CaseTimes, ProcessGroup, space
from commbench.tune.confirmation import Confirmation
from commbench.tune.tuner import Tuned, Tuner
from tests.conftest import in_threads

# The launches differ, cases within a launch differ, samples wander, and some are hit by what has nothing to do with us.
NOISE: dict[str, Any] = {
    "launch_noise": 0.1,
    "case_noise": 0.02,
    "noise": 0.05,
    "autocorrelation": 0.8,
    "spikes": {"chance": 0.01, "factor": 8.0},
}


class Ruled:
    """A `Measurer` whose times are `rule(case)` microseconds with noise of every kind, and faults by name."""

    start_s = overhead_s = 0.0
    spent_s = 0.0
    run = "ruled"

    def __init__(self, rule: Callable[[Case], float], seed: int, faults: dict[str, Status] | None = None) -> None:
        self._rule = rule
        self._random = np.random.default_rng(seed)
        self._faults = faults or {}
        self.stages: list[tuple[str, list[Case]]] = []

    def measure(self, stage: str, cases: Sequence[Case]) -> dict[str, CaseTimes]:
        self.stages.append((stage, list(cases)))
        rounds = max(case.policy.launches for case in cases)
        launch = {
            (number, key): math.exp(self._random.normal(0, NOISE["launch_noise"]))
            for number in range(rounds)
            for key in {case.setup.key for case in cases}
        }
        seen = self._samples(len(cases), rounds)
        found = {}
        for row, case in enumerate(cases):
            if fault := self._faults.get(case.label):
                found[case.case_id] = CaseTimes(status=fault, reason="planted")
                continue
            centre = self._rule(case)
            times = {
                ProcessGroup(number, case.setup.key): centre * launch[number, case.setup.key] * float(seen[row, number])
                for number in range(case.policy.launches)
            }
            found[case.case_id] = CaseTimes(status=Status.OK, time_us=times)
        return found

    def _samples(self, cases: int, launches: int, samples: int = 20) -> Floats:
        """Medians of samples that share a part, wander, and have spikes: cases x launches."""
        rho, spikes = NOISE["autocorrelation"], NOISE["spikes"]
        steps = self._random.normal(0, NOISE["noise"], (samples, cases, launches)) * math.sqrt(1 - rho * rho)
        for before, after in itertools.pairwise(steps):
            after += rho * before
        hit = self._random.random(steps.shape) < spikes["chance"]
        medians: Floats = np.median(np.exp(steps) * np.where(hit, spikes["factor"], 1.0), axis=0)
        return medians * np.exp(self._random.normal(0, NOISE["case_noise"], (cases, launches)))


class InProcess:
    """A `Measurer` over the scripted transport: its ranks are threads, and every case is checked before it is timed."""

    start_s = overhead_s = 0.0
    spent_s = 0.0
    run = "in-process"

    def __init__(self, script: dict[str, Any], seed: int) -> None:
        self._script = json.dumps(script)
        self._seed = seed
        self._launches = 0

    def measure(self, stage: str, cases: Sequence[Case]) -> dict[str, CaseTimes]:
        times: dict[str, dict[ProcessGroup, float]] = {case.case_id: {} for case in cases}
        wrong: set[str] = set()
        for number in range(max(case.policy.launches for case in cases)):
            due = [case for case in cases if number < case.policy.launches]
            random.Random(f"{self._seed}/{self._launches}").shuffle(due)
            for case, time_us in zip(due, self._launch(due), strict=True):
                if time_us is None:
                    wrong.add(case.case_id)
                else:
                    times[case.case_id][ProcessGroup(number, str(self._launches))] = time_us
            self._launches += 1
        return {
            case.case_id: CaseTimes(status=Status.WRONG_RESULT, reason="before timing")
            if case.case_id in wrong
            else CaseTimes(status=Status.OK, time_us=times[case.case_id])
            for case in cases
        }

    def _launch(self, cases: Sequence[Case]) -> list[float | None]:
        layout = cases[0].setup.layout
        meshes = thread_meshes(layout.ranks)

        def rank(number: int) -> list[float | None]:
            options = {"script": self._script, "layout": (layout.nodes, layout.ranks_per_node)}
            transport = Scripted({**options, "seed": self._seed, "launch": self._launches})
            transport.attach(meshes[number])
            taken: list[float | None] = []
            for case in cases:
                transport.case_begins({"algorithm": case.algorithm, "size_bytes": case.size_bytes})
                spec, comm = case.spec, transport.world
                collective = collectives.get(case.collective)
                bound = algorithms.get(case.collective, case.algorithm).prepare(comm, spec)
                sizes = collective.output_bytes(spec, number), collective.input_bytes(spec, number)
                out, inp = comm.empty(sizes[0]), comm.empty(sizes[1])
                checker = verify.Checker(transport, collective, spec, number, case.seed)
                checker.poison(out, 1)
                checker.fill_input(inp, 1)
                bound.start(out, inp).wait()
                if transport.all_gather([float(checker.count_wrong(out, 1))]).any():
                    taken.append(None)
                    continue
                ready = bound.bind([(out, inp)])
                timing = loop.measure(transport, ready, case.policy, mode="isolated", observer=loop.Observer())
                taken.append(float(np.median(timing.slowest_us)))
            return taken

        return list(in_threads(layout.ranks, rank)[0])


def region(*words: str) -> space.Region:
    """What `commbench tune quick transport=scripted WORDS` would search."""
    _, configs = prepare.configure(["quick", "transport=scripted", *words])
    (found,) = space.regions(configs)
    return found


def tune(measurer: Ruled | InProcess, of: space.Region, pairs: tuple[int, int] = (10, 10)) -> Tuned:
    def scope(setup: Any) -> Scope:
        return Scope(
            id="s", transport="scripted", nodes=setup.nodes, ranks_per_node=setup.ranks_per_node, env=setup.env
        )

    return Tuner(
        of, measurer, budget_s=1e9, scope=scope, note=lambda text: None, confirmation=Confirmation(pairs=pairs)
    ).run()


def adopted(tuned: Tuned) -> list[str]:
    """The ways that took the default's place."""
    return [choice.label for choice in tuned.choices if any(one.confirmed for one in choice.evidence)]
