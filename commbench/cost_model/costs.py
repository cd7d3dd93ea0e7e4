"""Fitted: the costs of one setting, with their intervals and errors, and predictions from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from commbench.cost_model import calibration, fit, misfit
from commbench.cost_model.fit import FitPoint, Solution
from commbench.cost_model.forms import BURST, CALL, VOLUME, Form
from commbench.cost_model.loads import CaseLoads, batch
from commbench.cost_model.misfit import Fold, Misfit
from commbench.cost_model.observe import Observation, describe_setting
from commbench.cost_model.skew import Skews
from commbench.fabric import links
from commbench.layout import LINK_CLASSES, Layout
from commbench.records import Case, network_note
from commbench.stats import Floats
from commbench.units import format_size

FEWEST_POINTS = 5
LEAST_R2 = 0.9  # of a model that explains what was measured
_CLOSE = 0.25  # of a prediction: so close new cases are good enough, whatever r2 is of times that hardly differ
_TOGETHER = 256  # cases
TCP_WAITS_US = 200_000.0  # the least time after which Linux sends a segment again
REACH = 2.0  # times the largest measured scale, up to which a prediction has no warning
_TWO_SIDED = 1.96  # standard deviations of a normal distribution that hold 95 %
_OF_MEDIAN = math.pi / 2  # variance of a median over that of a mean, of normal deviates
_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Microseconds, with a 95 % interval of a new case's time. `warning` says why to doubt it, "" if nothing does."""

    time_us: float
    low_us: float
    high_us: float
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """The largest that was measured, and the smallest; 0 where a file of an earlier version does not say."""

    size_bytes: int
    message_bytes: int
    ranks: int
    least_size_bytes: int = 0
    least_ranks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    text: str  # the setting, in words
    form: Form
    costs: dict[str, float]  # microseconds, or microseconds per KiB
    intervals: dict[str, tuple[float, float]]  # 95 %, points and launches resampled
    replicates: list[list[float]]  # costs in the order of the form
    unknown: tuple[str, ...]  # costs that no point has: nothing of that class of link was measured
    mixed: tuple[str, ...]  # costs that the points cannot separate
    r2: float  # of logarithms of times, over all observations
    r2_by_link: dict[str, float]  # over those that stay inside nodes, and those that cross links between them
    r2_possible: float | None  # what launches that differ leave of it, about; None of one launch
    spread: float  # standard deviation of the logarithm of a left-out point over its prediction
    left_out: dict[str, dict[str, float]]  # scale -> value -> median relative error of what was left out
    scales: Scales
    skews: Skews
    observations: int
    points: int
    notes: tuple[str, ...] = field(default=())
    misfit: Misfit | None = None  # None in files of an earlier version
    lacks: tuple[str, ...] = ()  # what a calibration has and these cases have not

    @property
    def usable(self) -> bool:
        """Return whether the costs say anything: they explain the times, or a new case is close to its prediction."""
        return self.r2 >= LEAST_R2 or _TWO_SIDED * self.spread <= _CLOSE

    def kib_between_us(self) -> tuple[float, float, float]:
        """Return what a KiB between nodes costs where a link carries much, and its 95 % interval: both slopes."""
        parts = [number for number, name in enumerate(self.costs) if name in ("beta_inter_us_per_kib", VOLUME)]
        sums = np.array(self.replicates)[:, parts].sum(axis=1)
        value = sum(list(self.costs.values())[number] for number in parts)
        low, high = np.quantile(sums, (0.025, 0.975))
        return value, min(float(low), value), max(float(high), value)

    def spread_on(self, layout: Layout) -> float:
        """Return the spread of what is no case, as a schedule's stage: it grows with each octave that a layout is
        outside of those that were measured."""
        return self.spread if self.misfit is None else math.hypot(self.spread, self.misfit.drift(layout))

    def predict(self, case: Case, loads: CaseLoads) -> Prediction | None:
        """Return the time of a case.

        None where a class of link takes part that was never measured, and on an emulated link where the interval
        reaches the time after which TCP sends again what was only late.
        """
        return self.predict_all([(case, loads)])[0]

    def predict_all(self, pairs: Sequence[tuple[Case, CaseLoads]]) -> list[Prediction | None]:
        """Return the same of many cases, in their order."""
        found: list[Prediction | None] = []
        sets = np.array([list(self.costs.values()), *self.replicates])
        skews = {ranks: self.skews.of(ranks) for ranks in {case.setup.layout.ranks for case, _ in pairs}}
        alike = sorted(range(len(pairs)), key=lambda number: pairs[number][1].rows.shape)  # little padding
        for first in range(0, len(alike), _TOGETHER):
            some = [pairs[number] for number in alike[first : first + _TOGETHER]]
            one = batch([moves for _, moves in some], [skews[case.setup.layout.ranks] for case, _ in some])
            logs = np.log(np.maximum(self.form.time_us(sets, one), fit.TINY_US))
            needed = np.zeros(len(some), dtype=bool)
            for name in self.unknown:
                unit = np.zeros((1, len(self.costs)))
                unit[0, self.form.costs.index(name)] = 1.0
                needed |= self.form.time_us(unit, replace(one, skew_us=np.zeros(len(some))))[0] > 0
            for (case, moves), of_case, is_needed in zip(some, logs.T, needed, strict=True):
                one_case = None if is_needed else self._predicted(case, moves, of_case)
                found.append(None if one_case is None or sends_again(case, one_case.high_us) else one_case)
        return [found[place] for place in np.argsort(alike)]

    def _predicted(self, case: Case, loads: CaseLoads, logs: Floats) -> Prediction:
        refits, missed, deviation = float(np.std(logs[1:])) if len(logs) > 1 else 0.0, 0.0, self.spread
        if self.misfit is not None:
            where = misfit.place(case.size_bytes, case.setup.layout)
            missed, deviation = self.misfit.predict(where, misfit.way(case))
        factor = math.exp(_TWO_SIDED * math.hypot(refits, deviation))
        time_us = math.exp(float(logs[0]) + missed)
        return Prediction(
            time_us=time_us, low_us=time_us / factor, high_us=time_us * factor, warning=self._warning(case, loads)
        )

    def _warning(self, case: Case, loads: CaseLoads) -> str:
        scales, ranks, far = self.scales, case.setup.layout.ranks, []
        if case.size_bytes > REACH * scales.size_bytes:
            far.append(f"{format_size(case.size_bytes)}, measured up to {format_size(scales.size_bytes)}")
        elif REACH * case.size_bytes < scales.least_size_bytes:
            far.append(f"{format_size(case.size_bytes)}, measured from {format_size(scales.least_size_bytes)}")
        if ranks > REACH * scales.ranks:
            far.append(f"{ranks} ranks, measured up to {scales.ranks}")
        elif REACH * ranks < scales.least_ranks:
            far.append(f"{ranks} ranks, measured from {scales.least_ranks}")
        if loads.largest_message_bytes > REACH * scales.message_bytes:
            far.append(
                f"messages of {format_size(loads.largest_message_bytes)}, measured up to "
                f"{format_size(scales.message_bytes)}"
            )
        said = [f"extrapolated: {'; '.join(far)}"] if far else []
        if not self.usable:
            said.append(f"the costs explain {100 * max(0.0, self.r2):.0f} % of what was measured: do not use this")
        return "; ".join(said)

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["form"]["power"] = None if math.isinf(self.form.power) else self.form.power
        return values

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Fitted:
        form = dict(raw["form"])
        form["power"] = math.inf if form["power"] is None else float(form["power"])
        values = {
            **raw,
            "form": Form(**form),
            "scales": Scales(**raw["scales"]),
            "skews": Skews({int(ranks): float(us) for ranks, us in raw["skews"]["by_ranks"].items()}),
            "intervals": {name: (float(low), float(high)) for name, (low, high) in raw["intervals"].items()},
        }
        for name in ("unknown", "mixed", "notes", "lacks"):
            values[name] = tuple(raw.get(name, ()))
        if raw.get("misfit") is not None:
            learnt = dict(raw["misfit"])
            learnt["places"] = tuple((float(a), float(b), float(c)) for a, b, c in learnt["places"])
            for name in ("ways", "errors", "noises"):
                learnt[name] = tuple(learnt[name])
            values["misfit"] = Misfit(**learnt)
        return Fitted(**values)


def sends_again(case: Case, time_us: float) -> bool:
    """Return whether so long a call on emulated links is beyond what messages and bytes say."""
    return case.setup.emulated is not None and case.setup.nodes > 1 and time_us > TCP_WAITS_US


def forms(items: Sequence[FitPoint]) -> list[Form]:
    """Return what is worth trying. On an emulated fabric it is known that the ranks of a node share its link."""
    cases = [observation.case for point in items for observation in point.observations]
    emulated = cases[0].setup.emulated
    several = any(case.setup.nodes > 1 for case in cases)
    owners: tuple[str, ...] = ("serial", "rank", "node") if several else ("serial",)
    cpus: tuple[str, ...] = ("machine", "node") if several else ("machine",)
    if emulated is not None:
        owners, cpus = ("node",), ("machine",)
    shared = [Form(owner, cpu, power) for owner in owners for cpu in cpus for power in (1.0, 2.0, math.inf)]
    plain = [Form(owner, "", math.inf) for owner in owners]
    candidates = [*plain, *shared]
    if emulated is not None:
        # Every packet is charged there, also those that only answer.
        candidates = [replace(form, burst=True, replies=replies) for replies in (False, True) for form in candidates]
    return candidates


def fit_setting(pairs: Sequence[tuple[Observation, CaseLoads]], *, seed: int = 0) -> Fitted:
    """Fit the costs of one setting. At least `FEWEST_POINTS` points are needed, of two sizes or more."""
    skews = Skews.measured([observation for observation, _ in pairs])
    everything = fit.points(pairs, skews)
    soon = [point for point in everything if not sends_again(point.observations[0].case, math.exp(point.log_us))]
    everything = soon if len(soon) >= FEWEST_POINTS else everything
    items = fit.thinned(everything, fit.MOST_POINTS)
    case = items[0].observations[0].case
    emulated = case.setup.emulated
    burst_us = 0.0
    if emulated is not None:
        rate = links(emulated)["inter"]
        burst_us = rate.burst_bytes / rate.gbps / 1e3
    solution = fit.choose(forms(items), items, burst_us)
    knees = [replace(solution.form, knee_kib=kib) for kib in fit.knees(solution.form, items)]
    solution = fit.refine(solution, knees, items)
    if len({point.loads.rows.shape[0] for point in items}) > 1:  # else a call and its step are one
        solution = fit.refine(solution, [replace(solution.form, call=True)], items)
    form, names = solution.form, solution.form.costs
    there = fit.learnable(form, fit.as_batch(items))
    sets = fit.replicates(solution, items, seed)
    low, high = np.quantile(sets, (0.025, 0.975), axis=0)
    left = {
        "size": fit.left_out(solution, items, lambda point: format_size(point.size_bytes)),
        "layout": fit.left_out(solution, items, lambda point: point.layout),
    }
    predicted = np.log(form.time_us(solution.costs[None], fit.as_batch(everything))[0])
    learnt = _misfit(solution, items, left)
    return Fitted(
        text=describe_setting(case),
        form=form,
        costs={name: _rounded(value) for name, value in zip(names, solution.costs, strict=True)},
        intervals={
            name: (min(_rounded(a), _rounded(value)), max(_rounded(b), _rounded(value)))
            for name, a, b, value in zip(names, low, high, solution.costs, strict=True)
        },
        replicates=[[_rounded(value) for value in line] for line in sets],
        unknown=tuple(
            name for name, known in zip(names, there, strict=True) if not known and name not in (CALL, BURST)
        ),
        mixed=tuple(fit.undetermined(solution, items)),
        r2=_r2(everything, predicted),
        r2_by_link=_by_link(everything, predicted),
        r2_possible=_possible(everything, predicted),
        spread=_spread(everything, predicted, left),
        left_out={
            scale: {name: _rounded(float(np.median(np.abs(np.expm1(one.without_errors))))) for name, one in by.items()}
            for scale, by in left.items()
        },
        scales=Scales(
            size_bytes=max(point.size_bytes for point in everything),
            message_bytes=max(point.loads.largest_message_bytes for point in everything),
            ranks=max(observation.case.setup.layout.ranks for observation, _ in pairs),
            least_size_bytes=min(point.size_bytes for point in everything),
            least_ranks=min(observation.case.setup.layout.ranks for observation, _ in pairs),
        ),
        skews=skews,
        observations=len(pairs),
        points=len(everything),
        notes=tuple(filter(None, dict.fromkeys(network_note(observation.fabric) for observation, _ in pairs))),
        misfit=learnt,
        lacks=calibration.missing([observation.case for observation, _ in pairs]),
    )


def _misfit(solution: Solution, items: Sequence[FitPoint], left: Mapping[str, Mapping[str, Fold]]) -> Misfit:
    """Learn what the form misses of the points."""
    few = fit.thinned(items, misfit.MOST_POINTS)
    number = {id(point): place for place, point in enumerate(items)}
    kept = np.array([number[id(point)] for point in few])
    cases = [point.observations[0].case for point in few]
    predicted = np.log(solution.form.time_us(solution.costs[None], fit.as_batch(few))[0])
    measured = np.array([point.log_us for point in few])
    ways = [misfit.way(case) for case in cases]
    noises = np.array([_noise(point) for point in few])
    of_way = np.array([_median([noise for noise, other in zip(noises, ways, strict=True) if other == way])
                       for way in ways])  # fmt: skip
    # What one point's few launches say is half believed.
    noises = np.sqrt((np.where(np.isfinite(noises), noises, of_way) ** 2 + of_way**2) / 2)
    folds = [Fold(errors=fold.errors[kept], without=fold.without[kept]) for by in left.values() for fold in by.values()]
    return Misfit.learnt(
        [misfit.place(case.size_bytes, case.setup.layout) for case in cases],
        ways,
        measured - predicted,
        noises.tolist(),
        [fold for fold in folds if fold.without.any() and not fold.without.all()],
    )


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else 0.0


def _noise(point: FitPoint) -> float:
    """Return the standard deviation of a point's time, as its launches differ; NaN of one launch."""
    lines = [line for line in point.logs if np.isfinite(line).sum() > 1]
    variances = [_OF_MEDIAN * float(np.nanvar(line, ddof=1)) / np.isfinite(line).sum() for line in lines]
    return math.sqrt(float(np.mean(variances)) / len(variances)) if variances else math.nan


def _r2(items: Sequence[FitPoint], predicted: Floats) -> float:
    measured = [point.medians for point in items]
    errors = np.concatenate([values - log for values, log in zip(measured, predicted, strict=True)])
    everything = np.concatenate(measured)
    total = float(((everything - everything.mean()) ** 2).sum())
    return _rounded(1 - float((errors**2).sum()) / total) if total > 0 else 0.0


def _by_link(items: Sequence[FitPoint], predicted: Floats) -> dict[str, float]:
    crosses = np.array([fit.has_inter(point.loads) for point in items])
    by_link: dict[str, float] = {}
    for link, there in zip(LINK_CLASSES, (~crosses, crosses), strict=True):
        of_link = [point for point, is_there in zip(items, there, strict=True) if is_there]
        if sum(len(point.observations) for point in of_link) > 2:
            by_link[link] = _r2(of_link, predicted[there])
    return by_link


def _possible(items: Sequence[FitPoint], predicted: Floats) -> float | None:
    """Return the r2 of a model that is right but for what differs from launch to launch: of medians of so many of them.

    An estimate, and of heavy tails a low one; it is not less than what was reached.
    """
    medians, errors = [], []
    for line in (line[np.isfinite(line)] for point in items for line in point.logs):
        medians.append(float(np.median(line)))
        if line.size > 1:
            errors.append(_OF_MEDIAN * float(np.var(line, ddof=1)) / line.size)
    if not errors or np.var(medians) == 0:
        return None
    return max(_rounded(1 - float(np.mean(errors)) / float(np.var(medians))), _r2(items, predicted))


def _spread(items: Sequence[FitPoint], predicted: Floats, left: Mapping[str, Mapping[str, Fold]]) -> float:
    """Return the spread of errors, of points left out where there are such: the worse of sizes and layouts."""
    inside = predicted - np.array([point.log_us for point in items])
    groups = [
        inside,
        *(np.concatenate([fold.without_errors for fold in folds.values()]) for folds in left.values() if folds),
    ]
    return _rounded(max(_robust(errors) for errors in groups))


def _robust(errors: Floats) -> float:
    """Return half the width that holds 95 % of the errors, as so many standard deviations of a normal distribution."""
    return float(np.quantile(np.abs(errors), 0.95)) / _TWO_SIDED


def _rounded(value: float) -> float:
    return float(f"{float(value):.{_DIGITS}g}")
