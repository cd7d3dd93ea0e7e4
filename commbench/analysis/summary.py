"""From the measurements of a case to its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from commbench import algorithms, collectives, stats
from commbench.algorithms import quantised
from commbench.analysis import bounds, routed, sample_files
from commbench.collectives.payload import PayloadMoves, payload_of
from commbench.layout import LINK_CLASSES, LinkClass
from commbench.records import STOP_REASONS, Case, Fabric, Measurement, Row, Status
from commbench.run_folder import LinesRead, RunFolder
from commbench.serialise import digest
from commbench.spec import Value, traffic_split
from commbench.stats import Floats
from commbench.units import gbps

_LONGEST_TEXT = 20

# Of these a row has the median over launches of each launch's own.
_MEDIANS = (
    *("time_us_mean", "time_us_p95", "host_us", "skew_us"),
    *("comm_alone_us", "compute_alone_us", "compute_beside_us"),
    *("comm_slowdown", "compute_slowdown", "overlap_percent"),
    *("wire_bytes", "spine_bytes", "link_imbalance", "cpu_percent", "load_average"),
)
_FIELDS = frozenset(item.name for item in fields(Row))
# What a case that is not `ok` lacks.
_NUMBERS = dict.fromkeys(item.name for item in fields(Row) if str(item.type).endswith("| None"))


class Samples:
    """Samples of a run, read from disk when asked for; of a file that has grown, what is new."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._files: dict[str, tuple[LinesRead, dict[str, Floats]]] = {}

    def has(self, measurement: Measurement) -> bool:
        """Return False where a full disk or a damaged file lost the samples of a measurement."""
        return measurement.case_id in self._read(measurement)

    def slowest_us(self, measurement: Measurement) -> Floats:
        """Return the maximum over ranks for each sample, microseconds."""
        return self._read(measurement)[measurement.case_id]

    def _read(self, measurement: Measurement) -> dict[str, Floats]:
        path = self._folder.samples_path(measurement.attempt)
        size = path.stat().st_size if path.exists() else 0
        place, by_case = self._files.get(measurement.attempt, (LinesRead(), {}))
        if size < place.offset:  # it was mended
            place, by_case = LinesRead(), {}
        if size > place.offset:
            for item in sample_files.read(self._folder, measurement.attempt, place):
                by_case[item.case_id] = item.slowest_us
        self._files[measurement.attempt] = place, by_case
        return by_case


def skipped_row(case: Case, reason: str) -> Row:
    return _row(case, Status.SKIPPED, reason, [])


def row(case: Case, measurements: Sequence[Measurement], samples: Samples, rates: bounds.Rates | None = None) -> Row:
    """Return the row of a finished case: the first failure if there was one, else the numbers of all launches.

    `rates` of links are those that the user declares.
    """
    for measurement in measurements:
        if measurement.status is not Status.OK:
            return _row(case, measurement.status, measurement.reason, measurements, wrong=measurement.wrong)
    medians = [float(m.time_us or 0.0) for m in measurements]
    if len(measurements) >= stats.LAUNCHES_FOR_INTERVAL:
        per_launch = [np.array([median]) for median in medians]  # only their medians are resampled
    else:
        per_launch = [samples.slowest_us(m) for m in measurements]
    time_us = float(np.median(medians))
    known = stats.interval(per_launch, seed=case.seed)
    low, high, of = known.around(time_us) if known else (None, None, None)
    spec = case.spec
    collective = collectives.get(case.collective)
    factor = collective.busbw_factor(spec)
    algbw = gbps(spec.size_bytes, time_us)
    busbw = None if factor is None else algbw * factor
    least, steps_us = bounds.of_case(case, bounds.links_of(measurements[0], rates or {}))
    mean_bytes = collective.mean_bytes(spec)
    mean = None if factor is None or mean_bytes is None else gbps(mean_bytes, time_us) * factor
    return _row(
        case,
        Status.OK,
        "",
        measurements,
        time_us=time_us,
        time_us_low=low,
        time_us_high=high,
        interval_of=of,
        calls_per_sample=int(np.median([m.calls_per_sample for m in measurements])),
        algbw_gbps=algbw,
        busbw_gbps=busbw,
        **bounds.numbers(spec, time_us, least),
        steps_us=steps_us,
        busbw_mean_gbps=mean,
        **{name: _median([getattr(m, name) for m in measurements]) for name in _MEDIANS},
        wrong=0,
        stop_reason=max((m.stop_reason for m in measurements), key=STOP_REASONS.index),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known and len(known) == len(values) else None


def _row(case: Case, status: Status, reason: str, measurements: Sequence[Measurement], **numbers: Any) -> Row:
    layout = case.setup.layout
    traffic: dict[LinkClass, int] | None = dict.fromkeys(LINK_CLASSES, 0)
    scratch = 0
    mean_bytes = None
    further: dict[str, Any] = {}
    if status is not Status.SKIPPED:
        spec = case.spec
        algorithm = algorithms.find(case.collective, case.algorithm)
        collective = collectives.get(case.collective)
        on_wire, payload = collective.on_wire(spec), payload_of(spec)
        steps = None if algorithm is None else algorithm.steps(on_wire)
        sends = None if steps is None else [send for step in steps for send in step.sends]
        traffic = None if sends is None else traffic_split(sends, spec.layout)
        measured = max((m.scratch_bytes for m in measurements), default=0)
        scratch = measured if algorithm is None else quantised.scratch_bytes(algorithm, spec)
        mean_bytes = collective.mean_bytes(spec)
        if payload is not None:
            assert isinstance(collective, PayloadMoves)
            further = {"payload_bytes": collective.travelling(spec).size_bytes}
            further["payload_error"] = payload.error(spec.dtype)
        if collective.routed:
            further |= routed.rows(spec)
            if (time_us := numbers.get("time_us")) is not None:
                further |= routed.rates(spec, steps, time_us)
    # All groups do the same at the same time.
    groups = 1 if layout.unsupported(case.groups) else layout.ranks // layout.within(case.groups).ranks
    done = [m for m in measurements if m.status is Status.OK]
    checked = [m.checked_calls for m in done]
    preempted = [m.preempted for m in done]
    computed = {
        "case_id": case.case_id,
        "status": status,
        "reason": reason,
        "arguments": {key: _short(value) for key, value in case.arguments.items()},
        "ranks": layout.ranks,
        "group_size": layout.ranks // groups,
        "fabric": Fabric.EMULATED if case.setup.emulated else next((m.fabric for m in measurements if m.fabric), ""),
        "rank_cpus": _read_back([m.rank_cpus for m in done]),
        "rank_memory": _read_back([m.rank_memory for m in done]),
        "launches": len({m.launch for m in done}),
        "samples": sum(m.samples for m in done),
        "checked_calls": None if None in checked or not done else sum(number or 0 for number in checked),
        "preempted": None if None in preempted else sum(number or 0 for number in preempted),
        "inter_bytes": None if traffic is None else traffic["inter"] * groups,
        "intra_bytes": None if traffic is None else traffic["intra"] * groups,
        "mean_bytes": mean_bytes,
        "scratch_bytes": scratch,
        **further,
    }
    return Row(**{**_NUMBERS, **_asked(case), **computed, **numbers})


def _asked(case: Case) -> dict[str, Any]:
    """Return the fields of a row that its case, its set-up or its emulated fabric has by the same name."""
    records = [item for item in (case.setup.emulated, case.setup, case) if item is not None]
    return {f.name: getattr(item, f.name) for item in records for f in fields(item) if f.name in _FIELDS}


def _read_back(launches: Sequence[list[str] | None]) -> str:
    """Return lists by rank, with blanks between them; those of launches that differ, with bars."""
    return " | ".join(dict.fromkeys(" ".join(values) for values in launches if values))


def _short(value: Value) -> Value:
    """Return a file's content as a digest: a matrix of a thousand ranks fills no cell of a table."""
    return f"#{digest(value)}" if isinstance(value, str) and len(value) > _LONGEST_TEXT else value
