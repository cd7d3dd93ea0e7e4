"""Runs that nobody measured: planned cases with times by a rule, for tests of what comes after measuring."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from commbench.analysis import ratios
from commbench.analysis.summary import Samples, row
from commbench.links import LinkRate
from commbench.output import parquet
from commbench.records import Case, Fabric, Measurement, Row, Status
from commbench.run_folder import RunFolder
from commbench.serialise import as_dict
from commbench.sweep import prepare
from commbench.sweep.plan import expand

META = {
    "commbench_version": "1.0",
    "run_id": "r1",
    "machine_text": "AMD EPYC 9654, 2 CPUs, x86_64, Python 3.12.3, torch 2.13.0+cpu",
    "machine": {"affinity": list(range(64))},
    "started": "2026-03-01T12:00:00+00:00",
}
# What every run.json has.
ABOUT: dict[str, object] = {
    **dict.fromkeys(("run_id", "plan_digest", "commbench_version", "machine_text"), ""),
    "machine": {},
    "launchers": {},
    "joined": "",
    "timeout_s": 1,
    "seed": 0,
    "started": "",
}
Rule = Callable[[Case], float]  # microseconds


def planned(*words: str) -> list[Case]:
    return list(_planned(words))


@functools.cache
def _planned(words: tuple[str, ...]) -> list[Case]:
    _, configs = prepare.configure(["quick", "transport=scripted", *words])
    return [item.case for item in expand(configs) if not item.skip]


def rows_of(cases: list[Case], measurements: list[Measurement], samples: Samples) -> list[Row]:
    """As a sweep finishes its cases, in their order."""
    by_case: dict[str, list[Measurement]] = {}
    for m in measurements:
        by_case.setdefault(m.case_id, []).append(m)
    return [row(case, by_case.get(case.case_id, []), samples) for case in cases]


def measured(
    cases: list[Case], rule: Rule, *, noise: float = 0.02, drift: float = 0.1, wire: float | None = None
) -> list[Measurement]:
    """Each launch is slower or faster as a whole by `drift`, and each case in it by `noise` (sigmas of logarithms)."""
    found = []
    for order, case in enumerate(cases):
        between = Fabric.between(case.setup.nodes, 1, emulated=case.setup.emulated is not None)
        for launch in range(case.policy.launches):
            attempt = f"{launch:03d}-{case.setup.key[:6]}-0"
            time_us = rule(case) * _factor(attempt, drift) * _factor(f"{case.case_id}/{launch}", noise)
            found.append(
                Measurement(
                    case_id=case.case_id, launch=launch, attempt=attempt, order=order, status=Status.OK, samples=20,
                    calls_per_sample=1, time_us=time_us, time_us_mean=time_us, stop_reason="samples",
                    links={"inter": LinkRate(gbps=0.125)}, fabric=between,
                    wire_bytes=None if wire is None or not case.setup.emulated else wire * case.size_bytes,
                )
            )  # fmt: skip
    return found


def _factor(seed: str, sigma: float) -> float:
    digits = int(hashlib.sha256(seed.encode()).hexdigest()[:12], 16)
    return float(np.exp(np.random.default_rng(digits).normal(0, sigma)))


def frame(cases: list[Case], measurements: list[Measurement], run_id: str = "r1") -> pd.DataFrame:
    """As a sweep of so many launches that no samples are needed gives it to the plots."""
    rows = rows_of(cases, measurements, Samples(RunFolder(Path("/nowhere"))))
    none = np.empty(0)
    return parquet.frame(rows, run_id, ratios.compare(cases, measurements, lambda measurement: none))


def folder(
    parent: Path, cases: list[Case], measurements: list[Measurement], samples: int
) -> tuple[RunFolder, list[Row]]:
    """A run folder with `samples` per measurement and rank, all of its cases finished."""
    run = RunFolder.create(parent, "made")
    run.write_plan([{"case": as_dict(case), "skip": ""} for case in cases])
    ranks = {case.case_id: case.setup.layout.ranks for case in cases}
    for m in measurements:
        run.append_measurement(m)
        slowest = [float(m.time_us or 0) * _factor(f"{m.case_id}{m.launch}/{s}", 0.05) for s in range(samples)]
        times = [[time] * ranks[m.case_id] for time in slowest]
        line = {"case_id": m.case_id, "launch": m.launch, "time_us": times, "host_us": times, "warmup_us": []}
        with open(run.samples_path(m.attempt), "a") as file:
            file.write(json.dumps(line) + "\n")
    rows = rows_of(cases, measurements, Samples(run))
    for finished in rows:
        run.append_row(finished)
    return run, rows
