"""What the cost model is fitted to: cases that were measured, with one time for each launch."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

from commbench.records import Case, Status
from commbench.run_folder import RunFolder
from commbench.serialise import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A measured case: microseconds of each launch, the median over samples of the maximum over ranks.

    `skew_us`: how long after the first rank the last one left the barrier before a call, None if not measured.
    """

    case: Case
    launches_us: tuple[float, ...]
    skew_us: float | None = None
    fabric: str = ""  # what is between the nodes, as in rows


def observe(folder: RunFolder) -> list[Observation]:
    """Return the finished cases of a run that have times, in the order of its plan."""
    made: dict[str, dict[int, tuple[float, float | None]]] = {}
    for measurement in folder.measurements():  # one made again in the same launch counts once, as made last
        if measurement.status is Status.OK and measurement.time_us:
            made.setdefault(measurement.case_id, {})[measurement.launch] = measurement.time_us, measurement.skew_us
    finished = {row.case_id: row for row in folder.rows().values() if row.status is Status.OK}
    observations = []
    for case in (item.case for item in folder.plan()):
        if case.case_id in finished and (of_case := made.get(case.case_id)):
            skews = [skew_us for _, skew_us in of_case.values() if skew_us is not None]
            observations.append(
                Observation(
                    case=case,
                    launches_us=tuple(of_case[launch][0] for launch in sorted(of_case)),
                    skew_us=statistics.median(skews) if skews else None,
                    fabric=finished[case.case_id].fabric,
                )
            )
    return observations


def setting(case: Case) -> str:
    """Return the digest of what cases share whose costs are the same: all but layout, exchange and size."""
    setup: dict[str, Any] = dataclasses.asdict(case.setup)
    for name in ("nodes", "ranks_per_node"):
        del setup[name]
    if setup["emulated"]:
        del setup["emulated"]["nodes"]
    return digest([setup, case.mode, case.buffers, case.cache, case.overlap])


def describe_setting(case: Case) -> str:
    """Return `gloo, emulated: 1gbit links, isolated, plain buffers`."""
    setup = case.setup
    words = [setup.transport]
    words += [f"emulated: {setup.emulated}"] if setup.emulated else []
    words += ["virtual hosts"] if setup.virtual_hosts else []
    words += [setup.binding_text] if setup.binding_text else []
    words += [f"{name}={value}" for name, value in setup.env.items()]
    words += [case.mode, f"{case.buffers} buffers"]
    words += ["cold cache"] if case.cache != "warm" else []
    words += [f"beside a {case.overlap}"] if case.overlap != "none" else []
    return ", ".join(words)
