"""What the cost model is fitted to: cases that were measured, with one time for each launch."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

from commbench.records import Case, Fabric, Measurement, Status
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
    """Return the cases of a run that have times and did not fail, in the order of its plan.

    Of a case that lacks launches, as the run was stopped or is not at its end, those that it has.
    """
    made: dict[str, dict[int, Measurement]] = {}
    for measurement in folder.measurements():  # one made again in the same launch counts once, as made last
        if measurement.status is Status.OK and measurement.time_us:
            made.setdefault(measurement.case_id, {})[measurement.launch] = measurement
    rows = folder.rows()
    observations = []
    for case in (item.case for item in folder.plan()):
        row = rows.get(case.case_id)
        if (row is None or row.status is Status.OK) and (of_case := made.get(case.case_id)):
            skews = [one.skew_us for one in of_case.values() if one.skew_us is not None]
            between = Fabric.EMULATED if case.setup.emulated else next(iter(of_case.values())).fabric
            observations.append(
                Observation(
                    case=case,
                    launches_us=tuple(of_case[launch].time_us or 0.0 for launch in sorted(of_case)),
                    skew_us=statistics.median(skews) if skews else None,
                    fabric=row.fabric if row else between,
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
