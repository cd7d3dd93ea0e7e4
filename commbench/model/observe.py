"""What the cost model is fitted to: cases that were measured, with one time for each launch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from commbench.records import Case, Status, digest
from commbench.store import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A measured case: microseconds of each launch, the median over samples of the maximum over ranks."""

    case: Case
    launches_us: tuple[float, ...]


def observe(folder: RunFolder) -> list[Observation]:
    """The finished cases of a run, in the order of its plan. What failed or was skipped tells nothing."""
    times: dict[str, dict[int, float]] = {}
    for measurement in folder.measurements():  # one made again in the same launch counts once, as made last
        if measurement.status is Status.OK and measurement.time_us:
            times.setdefault(measurement.case_id, {})[measurement.launch] = measurement.time_us
    finished = {row.case_id for row in folder.rows().values() if row.status is Status.OK}
    return list(_observations(folder, finished, times))


def _observations(folder: RunFolder, finished: set[str], times: dict[str, dict[int, float]]) -> Iterator[Observation]:
    for case, _ in folder.plan()[0]:
        if case.case_id in finished and (of_case := times.get(case.case_id)):
            yield Observation(case=case, launches_us=tuple(of_case[launch] for launch in sorted(of_case)))


def setting(case: Case) -> str:
    """The same for cases that share their costs: all that differs is the layout, the exchange and its size."""
    outer: dict[str, Any] = dataclasses.asdict(case.outer)
    for name in ("nodes", "ranks_per_node"):
        del outer[name]
    if outer["emulated"]:
        del outer["emulated"]["nodes"]
    return digest([outer, case.mode, case.buffers, case.cache, case.overlap])


def describe_setting(case: Case) -> str:
    """`gloo, emulated: 1gbit links, isolated, plain buffers`."""
    outer = case.outer
    words = [outer.transport]
    words += [f"emulated: {outer.emulated}"] if outer.emulated else []
    words += ["virtual hosts"] if outer.virtual_hosts else []
    words += [outer.binding_text] if outer.binding_text else []
    words += [f"{name}={value}" for name, value in outer.env.items()]
    words += [case.mode, f"{case.buffers} buffers"]
    words += ["cold cache"] if case.cache != "warm" else []
    words += [f"beside a {case.overlap}"] if case.overlap != "none" else []
    return ", ".join(words)
