"""What a run has so far: finished cases, and those that only a part of their launches has measured.

A run is finished launch by launch, so for most of its time few cases have their row. All that reads a run reads this:
an unfinished case has a row too, of the launches that it has, and the run says how much of it there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from commbench.analysis import bounds, summary
from commbench.records import Measurement, PlannedCase, Row, Status
from commbench.run_folder import RunFolder
from commbench.stats import LAUNCHES_FOR_INTERVAL


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsSoFar:
    """rows: by case id, in the plan's order. partial: how much of the run there is, in words; "" of all of it."""

    rows: Mapping[str, Row]
    partial: str = ""

    @property
    def ok(self) -> dict[str, Row]:
        """Return the rows that have numbers."""
        return {case_id: row for case_id, row in self.rows.items() if row.status is Status.OK}


def of_run(folder: RunFolder) -> RowsSoFar:
    """Return the rows of a run's finished cases, and of the others those of the launches that they have.

    Raises `CorruptFile`.
    """
    finished = folder.rows()
    plan = folder.plan()
    if all(item.case.case_id in finished for item in plan):
        return RowsSoFar(rows=finished)
    samples = summary.Samples(folder)
    measured = _measured(folder)
    rates = bounds.declared(folder.read_json("run.json").get("link_rate") or {})
    rows: dict[str, Row] = {}
    for item in plan:
        case_id = item.case.case_id
        if case_id in finished:
            rows[case_id] = finished[case_id]
        elif made := _usable(measured.get(case_id, {}), samples):
            rows[case_id] = summary.row(item.case, made, samples, rates)
    return RowsSoFar(rows=rows, partial=_how_much(plan, finished, measured))


def partial_runs(folders: Sequence[RunFolder]) -> list[str]:
    """Return a line for each run that is not finished: how much of it there is."""
    said = [(folder, _how_much(folder.plan(), folder.rows(), _measured(folder))) for folder in folders]
    return [f"partial, {folder.run_id}: {text}" for folder, text in said if text]


def _measured(folder: RunFolder) -> dict[str, dict[int, Measurement]]:
    """Return the measurements by case and launch; one made again counts once, as made last."""
    measured: dict[str, dict[int, Measurement]] = {}
    for one in folder.measurements():
        measured.setdefault(one.case_id, {})[one.launch] = one
    return measured


def _usable(of_case: Mapping[int, Measurement], samples: summary.Samples) -> list[Measurement]:
    """Return the measurements that a row can be made of, in the order of their launches."""
    made = [of_case[launch] for launch in sorted(of_case)]
    if len(made) >= LAUNCHES_FOR_INTERVAL:  # of which the samples are not read
        return made
    return [one for one in made if one.status is not Status.OK or samples.has(one)]


def _how_much(
    plan: Sequence[PlannedCase], finished: Mapping[str, Row], measured: Mapping[str, Mapping[int, Measurement]]
) -> str:
    """Return `7 of 18 measurements: launch 1, and a part of launch 2 of 3`; "" where nothing is missing."""
    if all(item.case.case_id in finished for item in plan):
        return ""
    # What a failed case lacks is not measured any more.
    missing: dict[int, int] = {}
    planned: dict[int, int] = {}
    for item in plan:
        of_case = measured.get(item.case.case_id, {})
        for launch in range(0 if item.skip else item.case.policy.launches):
            planned[launch] = planned.get(launch, 0) + 1
            missing[launch] = missing.get(launch, 0) + (launch not in of_case and item.case.case_id not in finished)
    made = sum(planned.values()) - sum(missing.values())
    whole = [launch + 1 for launch in planned if not missing[launch]]
    parts = [launch + 1 for launch in planned if 0 < missing[launch] < planned[launch]]
    said = [_numbered(whole)] if whole else []
    said += [f"a part of {_numbered(parts)}"] if parts else []
    which = f": {', and '.join(said)} of {len(planned)}" if said and len(planned) > 1 else ""
    return f"{made} of {sum(planned.values())} measurements{which}"


def _numbered(launches: Sequence[int]) -> str:
    """Return `launch 2`, `launches 1 to 4` or `launches 1, 3`."""
    if len(launches) == 1:
        return f"launch {launches[0]}"
    together = list(launches) == list(range(launches[0], launches[-1] + 1)) and len(launches) > 2
    return f"launches {f'{launches[0]} to {launches[-1]}' if together else ', '.join(map(str, launches))}"
