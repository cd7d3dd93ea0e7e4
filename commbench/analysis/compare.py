"""Two runs, case by case: has anything become slower?

The runs were made at different times, so nothing pairs their launches: each one's are resampled on their own. Files of
nccl-tests and OSU have one number for each size, and so no interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from commbench import collectives, formats, stats
from commbench.analysis import bounds, families, so_far
from commbench.analysis.bounds import Rates, Told
from commbench.analysis.summary import Samples
from commbench.errors import UsageError
from commbench.formats.result import Result
from commbench.links import LeastTime
from commbench.records import NOMINAL, Case, Fabric, Measurement, Status
from commbench.run_folder import RunFolder
from commbench.serialise import as_dict, digest
from commbench.stats import Floats, Verdict
from commbench.units import format_size, gbps

# Facts about a machine without which a comparison is refused; other differences (kernel, packages) are only shown.
MUST_MATCH = ("machine", "cpu", "cpus", "gpus", "usable_cpus")


# What `commbench compare` calls a verdict on the second run.
OUTCOMES = {
    Verdict.FASTER: "better",
    Verdict.SLOWER: "worse",
    Verdict.NO_DIFFERENCE: "inconclusive",
    Verdict.NOT_ESTIMABLE: "inconclusive",
}


_MOST_NAMED = 3  # of each run, in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTimes:
    """One thing that was measured: its times in microseconds."""

    label: str
    set_up: str  # what is shared by a curve
    size_bytes: int
    time_us: float
    launches: tuple[Floats, ...] = ()  # samples of each, the maximum over ranks; none of a foreign file
    groups: tuple[str, ...] = ()  # the process group of each
    fabric: str = ""  # as in rows; "" of a foreign file
    bound: LeastTime | None = None  # that the links allow


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseComparison:
    label: str
    set_up: str
    size_bytes: int
    before_us: float
    after_us: float
    ratio: float  # before / after: above 1 the second run is faster
    low: float | None
    high: float | None
    interval_of: str | None  # launches, samples
    launches: tuple[int, int]
    fabric: str = ""  # what is between the nodes, as in rows
    bound_us: float | None = None  # that the links of the second run allow, else those of the first
    bound_kind: str = ""
    p: float | None = None  # of no difference, adjusted for all cases; None with fewer than 6 launches of either run

    @property
    def verdict(self) -> Verdict:
        return stats.verdict(self.low, self.high, self.p)

    @property
    def outcome(self) -> str:
        return OUTCOMES[self.verdict]

    def regressed(self, threshold: float) -> bool:
        """Return whether it is slower, and for certain by more than `threshold` (0.05: 5 % more time)."""
        return self.verdict is Verdict.SLOWER and self.high is not None and 1 / self.high > 1 + threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """What a time is read by. factor: makes a busbw of an algbw, None where that means nothing. bound_us: at least."""

    factor: float | None = None
    bound_us: float | None = None

    def gbps(self, size_bytes: int, time_us: float) -> float:
        """Return GB/s: busbw where there is one."""
        return (self.factor or 1.0) * gbps(size_bytes, time_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """A run, or a file of another program."""

    path: Path
    machine: Mapping[str, Any] | None  # of a run
    points: Mapping[str, MeasuredTimes]  # by what makes two of them the same thing
    results: Sequence[Result] = ()  # of a file
    rates: Rates = field(default_factory=dict)  # of its links, as the user says
    note: str = ""  # what was passed over in it
    partial: str = ""  # how much of an unfinished run there is


def load(path: Path, told: Told | None = None) -> ComparedRun:
    """Read a run folder or a foreign file. Raises `UsageError` where there is nothing that could be compared."""
    told = told or Told()
    if path.is_file():
        log = formats.read(path, told.ranks, told.nodes)
        return ComparedRun(path=path, machine=None, points={}, results=log.results, note=log.note, rates=told.rates)
    folder = RunFolder.open(path)
    samples = Samples(folder)
    measured: dict[str, dict[str, Measurement]] = {}
    for measurement in folder.measurements():
        if measurement.status is Status.OK and measurement.time_us:
            measured.setdefault(measurement.case_id, {})[measurement.attempt] = measurement
    points: dict[str, MeasuredTimes] = {}
    known_rows = so_far.of_run(folder)
    ok = {id: row for id, row in bounds.of_rows(folder, known_rows.rows, told.rates).items() if row.status is Status.OK}
    for case in (item.case for item in folder.plan()):
        if case.case_id in ok and (of_case := measured.get(case.case_id)):
            known = sorted((m for m in of_case.values() if samples.has(m)), key=lambda m: m.launch)
            row = ok[case.case_id]
            fabric = row.fabric
            points[_identity(case)] = MeasuredTimes(
                label=case.label,
                set_up=_set_up(case, fabric),
                size_bytes=case.size_bytes,
                time_us=float(np.median([float(m.time_us or 0.0) for m in of_case.values()])),
                launches=tuple(samples.slowest_us(m) for m in known),
                groups=tuple(m.attempt for m in known),
                fabric=fabric,
                bound=LeastTime(row.bound_us, row.bound_kind) if row.bound_us else None,
            )
    if not points:
        raise UsageError(f"{path} has no case with numbers", hint=f"commbench sweep --resume {path}")
    machine = folder.read_json("run.json")["machine"]
    return ComparedRun(path=path, machine=machine, points=points, partial=known_rows.partial)


def yardsticks(path: Path, rates: Rates) -> dict[tuple[str, int], Yardstick]:
    """Return by set-up and size what the times of a run are read by. rates: those that the user declares."""
    folder = RunFolder.open(path)
    rows = bounds.of_rows(folder, so_far.of_run(folder).ok, rates)
    return {
        (_set_up(case, rows[case.case_id].fabric), case.size_bytes): Yardstick(
            factor=collectives.get(case.collective).busbw_factor(case.spec), bound_us=rows[case.case_id].bound_us
        )
        for case in (item.case for item in folder.plan())
        if case.case_id in rows
    }


def apart(before: ComparedRun, after: ComparedRun) -> str:
    """Return in words why two runs have no case in common: what no case of one has of the other's; "" of files."""
    parts = []
    for what, of in (
        ("algorithms", lambda point: point.label),
        ("set-ups", lambda point: point.set_up),
        ("sizes", lambda point: format_size(point.size_bytes)),
    ):
        one, two = (list(dict.fromkeys(map(of, run.points.values()))) for run in (before, after))
        if one and two and not set(one) & set(two):
            parts.append(f"{what}: {_some(one)} before, {_some(two)} after")
    return "; ".join(parts)


def _some(texts: Sequence[str]) -> str:
    return " | ".join(texts[:_MOST_NAMED]) + (" .." if len(texts) > _MOST_NAMED else "")


def _identity(case: Case) -> str:
    """Return the digest of what was measured, however long and however often."""
    values = as_dict(case)
    del values["policy"], values["seed"]
    return digest(values)


def _set_up(case: Case, fabric: str) -> str:
    asked = [f"{key}={value}" for key, value in case.arguments.items() if key not in ("send_bytes", "round")]
    words = [" ".join([case.collective, *asked]), str(case.setup)]
    words += [NOMINAL[Fabric.DECLARED]] if fabric == Fabric.DECLARED else []  # others are in the set-up
    words += [case.dtype, case.mode]
    words += [f"{case.buffers} buffers"] if case.buffers != "plain" else []
    words += ["in place"] if case.in_place else []
    words += [case.groups] if case.groups != "world" else []
    words += [f"beside a {case.overlap}"] if case.overlap != "none" else []
    words += ["cold cache"] if case.cache != "warm" else []
    return ", ".join(words)


def mismatches(before: ComparedRun, after: ComparedRun) -> tuple[list[str], list[str]]:
    """Return what differs between the machines, in words: what forbids a comparison, and what is only worth knowing."""
    if before.machine is None or after.machine is None:
        return [], []
    forbidding: list[str] = []
    others: list[str] = []
    for key in sorted({*before.machine, *after.machine} - {"load_average", "affinity", "uncommitted_changes"}):
        one, two = (_comparable(key, source.machine.get(key)) for source in (before, after) if source.machine)
        if one != two and not (key == "usable_cpus" and None in (one, two)):  # older runs do not say it
            text = f"{key} was {one!r}, is {two!r}"
            (forbidding if key in MUST_MATCH else others).append(text)
    both = [(point.fabric, after.points[key].fabric) for key, point in before.points.items() if key in after.points]
    forbidding += [f"the network was {one}, is {two}" for one, two in dict.fromkeys(both) if one != two]
    return forbidding, others


def _comparable(key: str, value: Any) -> Any:
    """Return a value of which only what matters is left: another GPU of the same kind is no other machine."""
    if key == "gpus" and value:
        return sorted((gpu["name"], gpu["memory_bytes"]) for gpu in value)
    if key == "memory" and isinstance(value, str):  # kB; what the kernel keeps for itself changes
        number = value.split()[0]
        return f"{round(int(number) / 2**20)} GiB" if number.isdigit() else value
    return value


def compare(before: ComparedRun, after: ComparedRun, *, seed: int = 0) -> list[CaseComparison]:
    """Return what both have, in the order of the first.

    Lines of other programs' files are matched as `commbench plot` does, by `Result.is_of`, and by size and dtype.
    """
    if not before.points and not after.points:
        return _of_files(before, after)
    if not before.points or not after.points:
        return _with_file(before, after)
    pairs = [(point, after.points[key]) for key, point in before.points.items() if key in after.points]
    return _adjusted([_compared(one, two, seed) for one, two in pairs], pairs)


def _adjusted(
    comparisons: Sequence[CaseComparison], pairs: Sequence[tuple[MeasuredTimes, MeasuredTimes]]
) -> list[CaseComparison]:
    """Return the comparisons with their p: all that have launches enough for a verdict are one family."""
    family = [index for index, item in enumerate(comparisons) if item.interval_of == "launches"]
    before, after = (
        [np.log([np.median(samples) for samples in pairs[index][run].launches]) for index in family] for run in (0, 1)
    )
    groups = [(pairs[index][0].groups, pairs[index][1].groups) for index in family]
    adjusted = dict(zip(family, families.unpaired(before, after, groups), strict=True))
    return [dataclasses.replace(item, p=adjusted.get(index)) for index, item in enumerate(comparisons)]


def _compared(one: MeasuredTimes, two: MeasuredTimes, seed: int) -> CaseComparison:
    ratio, bound = one.time_us / two.time_us, two.bound or one.bound
    known = stats.unpaired_ratio(one.launches, two.launches, seed=seed)
    low, high, of = known.interval.around(ratio) if known and known.interval else (None, None, None)
    return CaseComparison(
        label=one.label if one.label == two.label else f"{one.label} / {two.label}",
        set_up=one.set_up,
        size_bytes=one.size_bytes,
        before_us=one.time_us,
        after_us=two.time_us,
        ratio=ratio,
        low=low,
        high=high,
        interval_of=of,
        launches=(len(one.launches), len(two.launches)),
        fabric=one.fabric or two.fabric,
        bound_us=bound.us if bound else None,
        bound_kind=bound.kind if bound else "",
    )


def _of_results(same: Sequence[Result], rates: Rates) -> MeasuredTimes:
    """Return one thing that a file may have several times (cycles, or the test again): its median."""
    result = same[0]
    words = [f"{result.collective}, {result.ranks} ranks, {result.dtype or 'bytes'}"]
    words += [f"op={result.op}"] if result.op else []
    words += [f"root={result.root}"] if result.root is not None else []
    words += ["in place"] if result.in_place else []
    words += ["in a graph"] if result.graph else []
    words += [result.setting] if result.setting else []
    return MeasuredTimes(
        label=result.source + (f", median of {len(same)}" if len(same) > 1 else ""),
        set_up=", ".join(words),
        size_bytes=result.size_bytes,
        time_us=float(np.median([one.time_us or math.nan for one in same])),
        bound=bounds.of_result(result, rates),
    )


def _distinct(results: Sequence[Result]) -> list[list[Result]]:
    """Return right results with a time, those of one thing together, in the order of the file."""
    same: dict[Result, list[Result]] = {}
    for result in results:
        if result.time_us and result.size_bytes and not result.wrong:
            thing = dataclasses.replace(result, time_us=None, algbw_gbps=None, busbw_gbps=None, wrong=None)
            same.setdefault(thing, []).append(result)
    return list(same.values())


def _of_files(before: ComparedRun, after: ComparedRun) -> list[CaseComparison]:
    """Return what both files have. Lines of the same program and setting belong together; the rest meets the rest."""
    ones, others = _distinct(before.results), _distinct(after.results)
    alike = [(one, two) for one in ones for two in others if _alike(one[0], two[0])]
    exact = [pair for pair in alike if _origin(pair[0][0]) == _origin(pair[1][0])]
    taken = {id(member) for pair in exact for member in pair}
    chosen = [pair for pair in alike if pair in exact or not taken & {id(member) for member in pair}]
    return [_compared(_of_results(one, before.rates), _of_results(two, after.rates), 0) for one, two in chosen]


def _origin(result: Result) -> tuple[Any, ...]:
    return result.source, result.setting, result.op, result.root, result.graph


def _alike(one: Result, two: Result) -> bool:
    """Return whether two lines are of the same thing. Of settings that only one of them tells, nothing is known."""
    said = {name: value for name, value in (("op", two.op), ("root", two.root)) if value is not None}
    return (
        (one.size_bytes, one.dtype) == (two.size_bytes, two.dtype)
        and (one.setting == two.setting or "" in (one.setting, two.setting))
        and one.is_of(
            collective=two.collective, ranks=two.ranks, in_place=two.in_place, groups=two.groups, overlap=two.overlap,
            graph=two.graph, arguments=said,
        )
    )  # fmt: skip


def _with_file(before: ComparedRun, after: ComparedRun) -> list[CaseComparison]:
    """Return every case of the run with the lines of the file that are of the same thing."""
    run, file = (before, after) if before.points else (after, before)
    comparisons = []
    by_size: dict[int, list[list[Result]]] = {}
    for same in _distinct(file.results):
        by_size.setdefault(same[0].size_bytes, []).append(same)
    for case in (item.case for item in RunFolder.open(run.path).plan()):
        point = run.points.get(_identity(case))
        for same in by_size.get(case.size_bytes, []) if point else []:
            if point and same[0].dtype in (None, case.dtype) and same[0].is_of(
                collective=case.collective, ranks=case.setup.layout.ranks, in_place=case.in_place, groups=case.groups,
                overlap=case.overlap, graph=case.mode == "graph", arguments=case.arguments,
            ):  # fmt: skip
                result = _of_results(same, file.rates)
                pair = (point, result) if run is before else (result, point)
                comparisons.append(dataclasses.replace(_compared(*pair, 0), set_up=point.set_up))
    return comparisons
