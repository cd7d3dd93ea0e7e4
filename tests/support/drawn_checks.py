"""Run folders of checks that nobody measured: samples drawn by rule for a cluster of 4 nodes x 2 ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from commbench.analysis.summary import Samples
from commbench.check import kept, plan
from commbench.collectives import pairs
from commbench.links import LinkRate
from commbench.records import Case, Fabric, Measurement, Status
from commbench.run_folder import RunFolder
from commbench.serialise import as_dict, seal, to_json
from commbench.sweep import prepare
from tests.support.fake_runs import ABOUT, rows_of

WORDS = ("check", "transport=scripted", "nodes=4", "ranks_per_node=2")
LAUNCHES, SAMPLES = 6, 8
QUIET: dict[str, Any] = {"cpus": 2, "average": 0.1, "others": 0.0, "busiest": [], "much": False}
_ALPHA_US = {"intra": 5.0, "inter": 20.0}
_US_PER_BYTE = {"intra": 1e-4, "inter": 1e-3}


def cases(budget_s: float = 30, *, joined: bool = False, launches: int = LAUNCHES) -> list[Case]:
    """The plan of a check, with so many launches."""
    words = [*WORDS, "launches=1"] if joined else [*WORDS, f"launches={launches}"]
    _, configs = prepare.configure(words, {})
    return [item.case for item in plan.expand(configs, budget_s, joined=joined)]


def draw(
    parent: Path, seed: int, *, slow_link: tuple[int, str, float] | None = None,
    slow_rank: tuple[int, float] | None = None,
    noise: float = 0.05, launch_noise: float = 0.1, spikes: float = 0.02, joined: bool = False,
    of: list[Case] | None = None, looks: Mapping[str, Any] = QUIET, host: Mapping[str, Any] | None = None,
    bound_gbps: float = 1.0, slower: float = 1.0,
) -> RunFolder:  # fmt: skip
    """A finished check. slow_link: node, direction (out, in, both), factor of its bytes; slow_rank: rank, factor.

    Messages vary by `noise` sample by sample, by half of it message by message and launch by launch; launches as a
    whole by `launch_noise`; one sample in fifty takes five times as long. slower: all of it.
    """
    rng = np.random.default_rng(seed)
    planned = of or cases(joined=joined)
    folder = RunFolder.create(parent, "check")
    folder.write_plan([{"case": as_dict(case), "skip": ""} for case in planned])
    about = {**ABOUT, "run_id": folder.run_id, "format_version": 6, "joined": "torchrun" if joined else "",
             "command": ["commbench", "sweep", *WORDS]}  # fmt: skip
    folder.write_json("run.json", about)
    launches = 1 if joined else LAUNCHES
    measurements = []
    for launch in range(launches):
        attempt = f"{launch:03d}-{planned[0].setup.key[:6]}-0"
        whole = np.exp(rng.normal(0, launch_noise)) * slower
        with open(folder.samples_path(attempt), "a") as file:
            for order, case in enumerate(planned):
                times = _times(case, rng, slow_link, slow_rank, noise, spikes) * whole
                line = {"case_id": case.case_id, "launch": launch, "time_us": times.round(3).tolist(),
                        "host_us": times.tolist(), "warmup_us": []}  # fmt: skip
                file.write(json.dumps(line) + "\n")
                time_us = float(np.median(times.max(axis=1)))
                measurements.append(
                    Measurement(case_id=case.case_id, launch=launch, attempt=attempt, order=order, status=Status.OK,
                                samples=SAMPLES, calls_per_sample=1, time_us=time_us, time_us_mean=time_us,
                                stop_reason="samples", links={"inter": LinkRate(gbps=bound_gbps)},
                                fabric=Fabric.EMULATED, elapsed_s=0.1)
                )  # fmt: skip
        logs = folder.path / "logs" / attempt
        logs.mkdir()
        facts = {} if launch else {"doctor": [], "machine": {"cpus": "0-1"}, "metadata": {}, **(host or {})}
        (logs / "host-0.json").write_text(json.dumps({"rank": 0, "host": "h", "looks": [dict(looks)], **facts}))
    # Not as a sweep does, which has each line on disk before it goes on.
    folder.measurements_path.write_text("".join(seal(to_json(one)) + "\n" for one in measurements))
    rows = rows_of(planned, measurements, Samples(folder))
    folder.cases_path.write_text("".join(seal(to_json(row)) + "\n" for row in rows))
    kept.begin(folder, kept.Asked(budget_s=30))
    return folder


def _times(
    case: Case, rng: np.random.Generator, slow_link: tuple[int, str, float] | None,
    slow_rank: tuple[int, float] | None, noise: float, spikes: float,
) -> Any:  # fmt: skip
    """Samples x ranks, microseconds."""
    layout, n = case.setup.layout, case.setup.layout.ranks
    if case.collective != "pairs":
        slowest = max(slow_link[2] if slow_link else 1.0, slow_rank[1] if slow_rank else 1.0)
        base = 7 * (_ALPHA_US["inter"] + _US_PER_BYTE["inter"] * case.size_bytes / n) * slowest
        return base * np.exp(rng.normal(0, noise, (SAMPLES, n)) * 0.1 + rng.normal(0, noise, (SAMPLES, 1)))
    times = np.full((SAMPLES, n), 1.0)
    for src, dst in pairs.directed(case.spec):
        link = layout.link(src, dst)
        per_byte, rank_factor = _US_PER_BYTE[link], 1.0
        if slow_link and link == "inter":
            node, way, factor = slow_link
            ends = {"out": [src], "in": [dst], "both": [src, dst]}[way]
            per_byte *= factor if node in map(layout.node, ends) else 1.0
        if slow_rank and slow_rank[0] in (src, dst):
            rank_factor = slow_rank[1]
        mine = (_ALPHA_US[link] + per_byte * case.size_bytes) * rank_factor * np.exp(rng.normal(0, noise / 2))
        drawn = mine * np.exp(rng.normal(0, noise, SAMPLES)) * np.where(rng.random(SAMPLES) < spikes, 5.0, 1.0)
        times[:, src] = times[:, dst] = drawn
    return times
