"""Fitted: the costs of one setting, with their intervals and errors, and predictions from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from commbench.cost_model import fit
from commbench.cost_model.fit import FitPoint
from commbench.cost_model.forms import CALL, Form
from commbench.cost_model.loads import CaseLoads, batch
from commbench.cost_model.observe import Observation, describe_setting
from commbench.cost_model.skew import Skews
from commbench.fabric import links
from commbench.layout import LINK_CLASSES
from commbench.records import Case, network_note
from commbench.stats import Floats
from commbench.units import format_size

FEWEST_POINTS = 5
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
    """The largest that was measured."""

    size_bytes: int
    message_bytes: int
    ranks: int


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

    def predict(self, case: Case, loads: CaseLoads) -> Prediction | None:
        """Return the time of a case, None where a class of link takes part that was never measured."""
        one = batch([loads], [self.skews.of(case.setup.layout.ranks)])
        if any(self._needs(name, loads) for name in self.unknown):
            return None
        costs = np.array([list(self.costs.values()), *self.replicates])
        times = self.form.time_us(costs, one)[:, 0]
        logs = np.log(np.maximum(times[1:], fit.TINY_US))
        deviation = math.hypot(float(np.std(logs)) if len(logs) else 0.0, self.spread)
        factor = math.exp(_TWO_SIDED * deviation)
        time_us = float(times[0])
        return Prediction(
            time_us=time_us, low_us=time_us / factor, high_us=time_us * factor, warning=self._warning(case, loads)
        )

    def _needs(self, name: str, loads: CaseLoads) -> bool:
        unit = np.zeros((1, len(self.costs)))
        unit[0, self.form.costs.index(name)] = 1.0
        return bool(self.form.time_us(unit, batch([loads]))[0, 0] > 0)

    def _warning(self, case: Case, loads: CaseLoads) -> str:
        scales, far = self.scales, []
        if case.size_bytes > REACH * scales.size_bytes:
            far.append(f"{format_size(case.size_bytes)}, measured up to {format_size(scales.size_bytes)}")
        if case.setup.layout.ranks > REACH * scales.ranks:
            far.append(f"{case.setup.layout.ranks} ranks, measured up to {scales.ranks}")
        if loads.largest_message_bytes > REACH * scales.message_bytes:
            far.append(
                f"messages of {format_size(loads.largest_message_bytes)}, measured up to "
                f"{format_size(scales.message_bytes)}"
            )
        return f"extrapolated: {'; '.join(far)}" if far else ""

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
        for name in ("unknown", "mixed", "notes"):
            values[name] = tuple(raw[name])
        return Fitted(**values)


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
    items = fit.points(pairs, skews)
    case = items[0].observations[0].case
    emulated = case.setup.emulated
    burst_us = 0.0
    if emulated is not None:
        rate = links(emulated)["inter"]
        burst_us = rate.burst_bytes / rate.gbps / 1e3
    solution = fit.choose(forms(items), items, burst_us)
    if len({point.loads.rows.shape[0] for point in items}) > 1:  # else a call and its step are one
        solution = fit.choose([solution.form, replace(solution.form, call=True)], items, burst_us)
    form, names = solution.form, solution.form.costs
    loads = fit.as_batch(items)
    there = fit.learnable(form, loads)
    sets = fit.replicates(solution, items, seed)
    low, high = np.quantile(sets, (0.025, 0.975), axis=0)
    left = {
        "size": fit.left_out(solution, items, lambda point: format_size(point.size_bytes)),
        "layout": fit.left_out(solution, items, lambda point: point.layout),
    }
    predicted = np.log(form.time_us(solution.costs[None], loads)[0])
    return Fitted(
        text=describe_setting(case),
        form=form,
        costs={name: _rounded(value) for name, value in zip(names, solution.costs, strict=True)},
        intervals={
            name: (min(_rounded(a), _rounded(value)), max(_rounded(b), _rounded(value)))
            for name, a, b, value in zip(names, low, high, solution.costs, strict=True)
        },
        replicates=[[_rounded(value) for value in line] for line in sets],
        unknown=tuple(name for name, known in zip(names, there, strict=True) if not known and name != CALL),
        mixed=tuple(fit.undetermined(solution, items)),
        r2=_r2(items, predicted),
        r2_by_link=_by_link(items, predicted),
        r2_possible=_possible(items, predicted),
        spread=_spread(items, predicted, left),
        left_out={
            scale: {value: _rounded(float(np.median(np.abs(np.expm1(errors))))) for value, errors in by_value.items()}
            for scale, by_value in left.items()
        },
        scales=Scales(
            size_bytes=max(point.size_bytes for point in items),
            message_bytes=max(point.loads.largest_message_bytes for point in items),
            ranks=max(observation.case.setup.layout.ranks for observation, _ in pairs),
        ),
        skews=skews,
        observations=len(pairs),
        points=len(items),
        notes=tuple(filter(None, dict.fromkeys(network_note(observation.fabric) for observation, _ in pairs))),
    )


def _r2(items: Sequence[FitPoint], predicted: Floats) -> float:
    measured = [np.nanmedian(point.logs, axis=1) for point in items]
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


def _spread(items: Sequence[FitPoint], predicted: Floats, left: Mapping[str, Mapping[str, Floats]]) -> float:
    """Return the spread of errors, of points left out where there are such: the worse of sizes and layouts."""
    inside = predicted - np.array([point.log_us for point in items])
    groups = [inside, *(np.concatenate(list(by_value.values())) for by_value in left.values() if by_value)]
    return _rounded(max(_robust(errors) for errors in groups))


def _robust(errors: Floats) -> float:
    """Return half the width that holds 95 % of the errors, as so many standard deviations of a normal distribution."""
    return float(np.quantile(np.abs(errors), 0.95)) / _TWO_SIDED


def _rounded(value: float) -> float:
    return float(f"{float(value):.{_DIGITS}g}")
