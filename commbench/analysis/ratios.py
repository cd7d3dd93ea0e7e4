"""How much faster one algorithm is than another: cases of one run that differ in algorithm and parameters only.

They share their launches, so each launch gives one pair of medians. The baseline of a group is the collective's
default algorithm with its default parameters. Where there is one algorithm only, payloads are compared with elements
that travel as they are; and the routings of an emulated fabric or the environments with the first of them: these have
launches of their own, one in each round, in an order drawn for each round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from commbench import algorithms, collectives, payloads, stats
from commbench.analysis import families, routing_evidence
from commbench.analysis.summary import Samples
from commbench.binding import policies
from commbench.emulated import ROUTINGS
from commbench.machine import infiniband
from commbench.records import Case, Measurement, Row, Status
from commbench.run_folder import RunFolder
from commbench.serialise import as_dict, digest
from commbench.stats import Floats, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """A case against its baseline. Of the baseline itself, all but its name is None."""

    baseline: str  # its label
    speedup: float | None = None  # time of the baseline / time: above 1 this case is faster
    speedup_low: float | None = None  # None: not estimable
    speedup_high: float | None = None
    speedup_of: str | None = None  # what was resampled: launches or samples
    pairs: int | None = None  # launches that measured both
    speedup_p: float | None = None  # of no difference, adjusted for all of the run; None below 6 pairs

    @property
    def verdict(self) -> Verdict | None:
        """Return what the interval and all ratios of the run allow to say, None of the baseline itself."""
        return None if self.pairs is None else stats.verdict(self.speedup_low, self.speedup_high, self.speedup_p)


def of_run(folder: RunFolder, rows: Collection[Row]) -> dict[str, Speedup]:
    """Return the ratios of a run's finished cases, by case id; none where its plan or measurements are not there."""
    finished = {row.case_id for row in rows if row.status is Status.OK}
    cases = [item.case for item in folder.plan() if item.case.case_id in finished]
    samples = Samples(folder)

    def slowest_us(measurement: Measurement) -> Floats:
        return samples.slowest_us(measurement) if samples.has(measurement) else np.empty(0)

    measurements = folder.measurements()
    return with_evidence(folder, cases, measurements, compare(cases, measurements, slowest_us))


def with_evidence(
    folder: RunFolder, cases: Sequence[Case], measurements: Sequence[Measurement], ratios: dict[str, Speedup]
) -> dict[str, Speedup]:
    """Take the verdict from ratios between variables of routing where nothing shows that routing differed."""
    about = [case for case in cases if infiniband.asked(case.setup.env)]
    if not about:
        return ratios
    attempts: dict[str, set[str]] = {}
    for measurement in measurements:
        attempts.setdefault(measurement.case_id, set()).add(measurement.attempt)
    for members in _alike_but_for(_BY_ENVIRONMENT, about):
        first, *others = members
        before = routing_evidence.of_arm(folder, attempts.get(first.case_id, ()))
        for case in others:
            after = routing_evidence.of_arm(folder, attempts.get(case.case_id, ()))
            if case.case_id in ratios and _only_routing(first, case) and routing_evidence.same(before, after):
                ratios[case.case_id] = replace(ratios[case.case_id], speedup_p=None)
    return ratios


def _only_routing(one: Case, other: Case) -> bool:
    """Return whether two environments differ in variables of routing alone."""
    differ = {name for name, _ in {*one.setup.env.items()} ^ {*other.setup.env.items()}}
    return differ <= infiniband.VARIABLES.keys()


def compare(
    cases: Sequence[Case], measurements: Sequence[Measurement], slowest_us: Callable[[Measurement], Floats]
) -> dict[str, Speedup]:
    """Return ratios by case id, of all `cases` that have one to be compared with.

    `slowest_us` gives the samples of a measurement, none where they are lost. A measurement made again counts once,
    as it was made last.
    """
    latest = {(m.case_id, m.launch): m for m in measurements if m.status is Status.OK and m.time_us is not None}
    # By process group, not by number: what a resume measured days later is no pair with what was there before.
    by_group: dict[str, dict[str, Measurement]] = {}
    for measurement in latest.values():
        by_group.setdefault(measurement.case_id, {})[measurement.attempt] = measurement
    speedups: dict[str, Speedup] = {}
    pairs: dict[str, list[tuple[Measurement, Measurement]]] = {}
    groups = [(members, first := min(members, key=baseline_rank), first.label) for members in _alike(cases)]
    compared = {case.case_id for members, _, _ in groups for case in members}
    for members in _alike_but_for_payload([case for case in cases if case.case_id not in compared]):
        first = min(members, key=_loss)
        groups.append((members, first, f"payload={_payload(first)}"))
    for members, baseline, label in groups:
        speedups[baseline.case_id] = Speedup(baseline=label)
        ours = by_group.get(baseline.case_id, {})
        for case in members:
            if case is not baseline:
                theirs = by_group.get(case.case_id, {})
                shared = pairs[case.case_id] = _in_order([(ours[key], theirs[key]) for key in ours if key in theirs])
                speedups[case.case_id] = _ratio(label, case, shared, slowest_us)
    by_round: dict[str, dict[int, Measurement]] = {}
    for measurement in latest.values():
        by_round.setdefault(measurement.case_id, {})[measurement.launch] = measurement
    for axis in _AXES:
        for members in _alike_but_for(axis, [case for case in cases if case.case_id not in speedups]):
            first = min(members, key=axis.place)
            name = axis.setting(first)
            speedups[first.case_id] = Speedup(baseline=name)
            before = by_round.get(first.case_id, {})
            for case in members:
                if case is not first:
                    after = by_round.get(case.case_id, {})
                    both = [(before[index], after[index]) for index in before if index in after]
                    rounds = pairs[case.case_id] = _in_order(both)
                    # Samples of two launches say nothing about what differs between launches.
                    speedups[case.case_id] = _ratio(name, case, rounds, lambda measurement: np.empty(0))
    return _adjusted(speedups, pairs)


def _in_order(pairs: list[tuple[Measurement, Measurement]]) -> list[tuple[Measurement, Measurement]]:
    """Return the pairs by number of their launch."""
    return sorted(pairs, key=lambda pair: pair[0].launch)


def _adjusted(
    speedups: Mapping[str, Speedup], pairs: Mapping[str, Sequence[tuple[Measurement, Measurement]]]
) -> dict[str, Speedup]:
    """Return the ratios with their p: all that have launches enough for a verdict are one family."""
    family = {
        name: np.array([math.log(float(one.time_us or 0) / float(two.time_us or 0)) for one, two in pairs[name]])
        for name, ratio in speedups.items()
        if ratio.speedup_of == "launches"
    }
    groups = [[one.attempt for one, _ in pairs[name]] for name in family]
    adjusted = dict(zip(family, families.paired(list(family.values()), groups), strict=True))
    return {name: replace(ratio, speedup_p=adjusted.get(name)) for name, ratio in speedups.items()}


def describe_ratios(ratios: Collection[Speedup]) -> str:
    """Return in words `over direct, launch by launch; 95 % interval over 6 launches that measured both; ...`."""
    names = list(dict.fromkeys(ratio.baseline for ratio in ratios))
    counts = sorted({ratio.pairs for ratio in ratios if ratio.pairs is not None})
    kinds = {ratio.speedup_of for ratio in ratios if ratio.speedup_of}
    over = ", or where that has no numbers ".join(names)
    if not counts:
        return f"these are the baseline, {over}"
    judged = sum(ratio.speedup_p is not None for ratio in ratios)
    together = "; verdicts of the run are corrected together" if judged else ""
    return (
        f"over {over}, launch by launch; {describe_pairs(counts, kinds)}; =: no difference, ?: not estimable{together}"
    )


def describe_pairs(counts: Sequence[int], kinds: Collection[str]) -> str:
    """Return where intervals are from: from how many pairs (ascending), and what was resampled."""
    few, many = (counts[0], counts[-1]) if counts else (0, 0)
    counted = f"{few} to {many} launches" if few < many else f"{many} launch{'es' if many != 1 else ''}"
    if not kinds:
        missing = stats.missing_launches(few)
        return f"no interval: too few samples in {counted} that measured both{'; ' if missing else ''}{missing}"
    of = "95 % interval over" if set(kinds) == {"launches"} else "95 % interval of samples in"
    text = f"{of} {counted} that measured both"
    text += "" if set(kinds) == {"launches"} else ", the spread between launches is NOT in it"
    if missing := stats.missing_launches(few):
        return f"{text}; {missing}"
    if few >= stats.PAIRS_FOR_CLAIM:
        return text
    return (
        f"{text}; a verdict takes {stats.LAUNCHES_FOR_INTERVAL} launches, a gain in a profile {stats.PAIRS_FOR_CLAIM}"
    )


def _alike(cases: Sequence[Case]) -> list[list[Case]]:
    """Return groups of two and more that share everything but algorithm and parameters."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        shared = as_dict(case)
        del shared["algorithm"], shared["params"]
        groups.setdefault(digest(shared), []).append(case)
    return [members for members in groups.values() if len(members) > 1]


def _payload(case: Case) -> str:
    return str(case.arguments.get("payload", payloads.NONE))


def _loss(case: Case) -> int:
    """Return what a baseline has least of: it sends elements as they are, or as they lose least."""
    return payloads.CHOICES.index(_payload(case))


def _alike_but_for_payload(cases: Sequence[Case]) -> list[list[Case]]:
    """Return groups of two and more that share everything but how elements travel."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if "payload" in collectives.get(case.collective).arguments:
            shared = as_dict(case)
            shared["arguments"].pop("payload", None)
            groups.setdefault(digest(shared), []).append(case)
    return [members for members in groups.values() if len(members) > 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """One that takes a launch for each setting."""

    setting: Callable[[Case], str]  # in words; "" where a case has none
    without: Callable[[dict[str, Any]], None]  # takes it out of a case
    place: Callable[[Case], int] = lambda case: 0  # the baseline has the lowest, or else is the first in the plan


def _routing(case: Case) -> str:
    emulated = case.setup.emulated
    return f"routing={emulated.routing}" if emulated is not None and emulated.spines > 1 else ""


def _environment(case: Case) -> str:
    return ", ".join(f"{name}={value}" for name, value in case.setup.env.items())


def _without_binding(case: dict[str, Any]) -> None:
    for name in ("binding", "cpu_masks", "binding_memory"):
        del case["outer"][name]


_BY_ENVIRONMENT = _Axis(setting=_environment, without=lambda case: case["outer"].pop("env"))
_AXES = (
    _Axis(
        setting=_routing,
        without=lambda case: case["outer"]["emulated"].pop("routing"),
        place=lambda case: ROUTINGS.index(case.setup.emulated.routing) if case.setup.emulated else 0,
    ),
    _Axis(
        setting=lambda case: case.setup.binding_text or "binding=none",
        without=_without_binding,
        place=lambda case: policies.POLICIES.index(case.setup.binding),
    ),
    _BY_ENVIRONMENT,
)


def _alike_but_for(axis: _Axis, cases: Sequence[Case]) -> list[list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if axis.setting(case):
            shared = as_dict(case)
            axis.without(shared)
            groups.setdefault(digest(shared), []).append(case)
    return [members for members in groups.values() if len(members) > 1]


def baseline_rank(case: Case) -> tuple[bool, int, bool]:
    """Return what the baseline has least of: the default, else the first in the table of algorithms, or in the plan."""
    names = algorithms.names(case.collective)
    place = names.index(case.algorithm) if case.algorithm in names else len(names)
    algorithm = algorithms.find(case.collective, case.algorithm)
    defaults = case.params if algorithm is None else {key: value for key, (value, _) in algorithm.params.items()}
    return place > 0 or case.params != defaults, place, case.params != defaults


def _ratio(
    baseline: str,
    case: Case,
    shared: Sequence[tuple[Measurement, Measurement]],
    slowest_us: Callable[[Measurement], Floats],
) -> Speedup:
    ours, theirs = ([_median(pair[arm]) for pair in shared] for arm in (0, 1))
    speedup = stats.median_ratio(ours, theirs)
    if len(shared) < stats.LAUNCHES_FOR_INTERVAL:  # else only the medians are resampled
        ours, theirs = ([slowest_us(pair[arm]) for pair in shared] for arm in (0, 1))
        if any(samples.size == 0 for samples in (*ours, *theirs)):
            ours, theirs = [], []
    known = stats.ratio(ours, theirs, seed=case.seed)
    interval = known.interval if known else None
    if speedup is None or interval is None:
        return Speedup(baseline=baseline, speedup=speedup, pairs=len(shared))
    interval = interval.around(speedup)
    return Speedup(
        baseline=baseline,
        speedup=speedup,
        speedup_low=interval.low,
        speedup_high=interval.high,
        speedup_of=interval.of,
        pairs=len(shared),
    )


def _median(measurement: Measurement) -> Floats:
    return np.array([measurement.time_us], dtype=float)
