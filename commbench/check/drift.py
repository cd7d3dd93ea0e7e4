"""Drift: what has become slower since an earlier check, and who was ill then or is now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from commbench import stats
from commbench.analysis import compare as runs
from commbench.analysis import pair_matrices
from commbench.analysis.pair_matrices import Matrix
from commbench.analysis.stragglers import suspects
from commbench.check import kept, plan
from commbench.check.judge import BAD, NOTE, OK, UNKNOWN, HealthReport
from commbench.check.named import FACTOR, Named
from commbench.errors import UsageError
from commbench.layout import LINK_CLASSES
from commbench.output.answer import words
from commbench.run_folder import RunFolder
from commbench.stats import Floats, Ratio
from commbench.units import format_size

LEAST = 1.1  # times slower for certain: days differ by less, and nobody knows by how much
_PLACES = {"intra": "inside nodes", "inter": "between nodes"}


def compare(report: HealthReport, before: Path, folder: RunFolder) -> None:
    """Add to a report what has changed since the check in `before`. Raises `UsageError` where there is none."""
    earlier = RunFolder.open(before)
    one, two = runs.load(earlier.path), runs.load(folder.path)
    forbidding, others = runs.mismatches(one, two)
    since = f"since {earlier.run_id}"
    for text in forbidding:
        report.add("drift", UNKNOWN, f"{since} {text}: nothing is compared")
    if forbidding:
        return
    for text in others:
        report.differs.append(f"{since}: {text}")
    slower, compared = [], 0
    for what, ratio in [*_all_to_all(earlier, folder), *_pairs(earlier, folder)]:
        compared += 1
        if ratio.low is not None and ratio.low > LEAST:
            of = ratio.interval.of if ratio.interval else None
            slower.append(Named(kind="drift", name=what, says=f"is {FACTOR} slow {since}", ratio=ratio.value,
                                low=ratio.low, high=ratio.high, interval_of=of,
                                evidence=("launches of the two checks, resampled apart",)))  # fmt: skip
    for found in slower:
        report.add("drift", BAD, found.sentence)
    report.named += slower
    if not slower and compared:
        report.add("drift", OK, f"none of {compared} times is {LEAST:g}x slow {since} for certain")
    if not compared:
        report.add("drift", UNKNOWN, f"{since} nothing was measured that is the same")
    for text in _changed(earlier, report):
        report.add("drift", NOTE, text)


def _all_to_all(before: RunFolder, after: RunFolder) -> list[tuple[str, Ratio]]:
    times = [_launches(folder) for folder in (before, after)]
    found = []
    for key in times[0].keys() & times[1].keys():
        if ratio := stats.unpaired_ratio(list(times[1][key].values()), list(times[0][key].values())):
            found.append((f"the all-to-all at {format_size(key[1])}", ratio))
    return sorted(found, key=lambda item: item[0])


def _launches(folder: RunFolder) -> dict[tuple[str, int], dict[str, Floats]]:
    """Return the samples of the all-to-all by set-up and size, launch by launch, both arms of a launch together."""
    found: dict[tuple[str, int], dict[str, list[Floats]]] = {}
    for item in pair_matrices.read_launches(folder):
        if item.case.collective == plan.ALL_TO_ALL:
            key = item.case.setup.key, item.case.size_bytes
            found.setdefault(key, {}).setdefault(item.launch[1], []).append(item.time_us.max(axis=1))
    return {key: {name: np.concatenate(parts) for name, parts in of.items()} for key, of in found.items()}


def _pairs(before: RunFolder, after: RunFolder) -> list[tuple[str, Ratio]]:
    matrices = [{matrix.key: matrix for matrix in pair_matrices.of_runs([folder])} for folder in (before, after)]
    found = []
    for key, matrix in matrices[1].items():
        if key not in matrices[0]:
            continue
        for number, link in enumerate(LINK_CLASSES):
            old, new = (_of_class(one, number) for one in (matrices[0][key], matrix))
            if old and new and (ratio := stats.unpaired_ratio(new, old)):
                name = f"a message of {format_size(matrix.size_bytes)} {_PLACES[link]}"
                found.append((name, ratio))
    return found


def _of_class(matrix: Matrix, link: int) -> list[Floats]:
    """Return the times of messages of a class, launch by launch."""
    mine = suspects.classes(matrix.layout) == link
    launches = [line[mine] for line in matrix.time_us.reshape(matrix.launches, -1)]
    known = [line[np.isfinite(line)] for line in launches]
    return [line for line in known if line.size]


def _changed(before: RunFolder, report: HealthReport) -> list[str]:
    """Return who was named then and is not now, and the reverse."""
    try:
        _, _, found = kept.read(before)
    except UsageError:  # a sweep of pairs and all-to-all will do
        return []
    then: set[str] = {str(one.get("name")) for one in found.get("named", []) if isinstance(one, Mapping)}
    now: set[str] = {one.name for one in report.named if one.kind != "drift"}
    texts: dict[str, Any] = {"named then, and not now": then - now, "named now, and not then": now - then}
    return [f"{what}: {words.listed(sorted(who))}" for what, who in texts.items() if who]
