"""Fitting: costs of one setting from its points, by robust least squares of relative errors.

A point is all observations with the same loads, so that the many alike rounds of a tournament weigh as much as one
exchange. Residuals are logarithms of predicted over measured time; the loss is linear beyond `_FORGIVEN` (scipy's
soft_l1), so single disturbed points do not bend the fit. Costs are not negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from commbench.cost_model.forms import BURST, CALL, Form
from commbench.cost_model.loads import RESOURCES, Batch, CaseLoads, batch
from commbench.cost_model.observe import Observation
from commbench.cost_model.skew import Skews
from commbench.errors import UsageError
from commbench.stats import Floats

_FORGIVEN = 0.15  # relative error from which the loss is linear
_FINE_ENOUGH = 0.02  # of a relative error: what halves it further is no reason for a more involved form
_REPLICATES = 60
_MOST_SKEW = 0.8  # of a time
TINY_US = 1e-9
_EVALUATIONS = 60
_CROSSES = list(RESOURCES).index("rank_inter")  # has loads where anything crosses links between nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPoint:
    """Observations that move the same. `logs` is observations x launches: logarithms of microseconds, NaN padded."""

    loads: CaseLoads
    observations: tuple[Observation, ...]
    logs: Floats
    skew_us: float = 0.0

    @property
    def log_us(self) -> float:
        return float(np.median(np.nanmedian(self.logs, axis=1)))

    @property
    def size_bytes(self) -> int:
        return self.observations[0].case.size_bytes

    @property
    def layout(self) -> str:
        return str(self.observations[0].case.setup.layout)


def as_batch(items: Sequence[FitPoint]) -> Batch:
    return batch([point.loads for point in items], [point.skew_us for point in items])


def points(pairs: Sequence[tuple[Observation, CaseLoads]], skews: Skews) -> list[FitPoint]:
    groups: dict[bytes, list[tuple[Observation, CaseLoads]]] = {}
    for observation, loads in pairs:
        # Of the same loads in another layout or size no copy: they are left out one by one.
        about = f"{observation.case.setup.layout}/{observation.case.size_bytes}".encode()
        groups.setdefault(about + loads.identity, []).append((observation, loads))
    result = []
    for members in groups.values():
        most = max(len(observation.launches_us) for observation, _ in members)
        logs = np.full((len(members), most), np.nan)
        for line, (observation, _) in zip(logs, members, strict=True):
            line[: len(observation.launches_us)] = np.log(observation.launches_us)
        observation, loads = members[0]
        skew_us = skews.of(observation.case.setup.layout.ranks)
        # The constant of the slowest case is no reason for another to take less than nothing.
        skew_us = min(skew_us, _MOST_SKEW * float(np.exp(np.nanmedian(logs))))
        observed = tuple(observation for observation, _ in members)
        result.append(FitPoint(loads=loads, observations=observed, logs=logs, skew_us=skew_us))
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    form: Form
    costs: Floats
    loss: float  # robust: half the sum of squares of small residuals
    points: int

    @property
    def criterion(self) -> float:
        """Return the Bayesian information criterion: a cost must pay by more than errors of `_FINE_ENOUGH`."""
        free = int((self.costs > 0).sum())
        square = 2 * self.loss / self.points + _FINE_ENOUGH**2
        return self.points * math.log(square) + free * math.log(self.points)


def solve(
    form: Form, loads: Batch, log_us: Floats, guesses: Sequence[Floats], fixed: npt.NDArray[np.bool_]
) -> Solution:
    """Return the best of several starts. Costs that are `fixed` stay as every guess has them."""
    from scipy.optimize import least_squares

    best: Solution | None = None
    free = np.flatnonzero(~fixed)
    for guess in guesses:
        # In units of what each cost would be if it alone took all the time, all are about 1.
        unit = _units(form, loads, log_us)[free]
        whole = guess.copy()

        def residuals(scaled: Floats, whole: Floats = whole, unit: Floats = unit) -> Floats:
            costs = whole.copy()
            costs[free] = scaled * unit
            errors: Floats = np.log(np.maximum(form.time_us(costs[None], loads)[0], TINY_US)) - log_us
            return errors

        def slopes(scaled: Floats, whole: Floats = whole, unit: Floats = unit) -> Floats:
            sets = np.tile(whole, (len(free) + 1, 1))
            sets[:, free] = scaled * unit
            step = np.maximum(np.abs(scaled), 1e-3) * 1e-4
            sets[np.arange(len(free)) + 1, free] += step * unit
            times = np.log(np.maximum(form.time_us(sets, loads), TINY_US))
            jacobian: Floats = ((times[1:] - times[0]) / step[:, None]).T
            return jacobian

        start = np.maximum(guess[free] / unit, 1e-6)
        result = least_squares(
            residuals,
            start,
            slopes,
            bounds=(0.0, np.inf),
            loss="soft_l1",
            f_scale=_FORGIVEN,
            ftol=1e-6,
            xtol=1e-6,
            max_nfev=_EVALUATIONS,
        )
        costs = whole.copy()
        costs[free] = np.where(result.x < 1e-5, 0.0, result.x) * unit
        if best is None or result.cost < best.loss:
            best = Solution(form=form, costs=costs, loss=float(result.cost), points=len(log_us))
    assert best is not None
    return best


def _units(form: Form, loads: Batch, log_us: Floats) -> Floats:
    sums = _sums(form, loads)
    units = np.ones(sums.shape[1])
    for number, column in enumerate(sums.T):
        if (there := column > 0).any():
            units[number] = float(np.median(np.exp(log_us)[there] / column[there]))
    return units


def _sums(form: Form, loads: Batch) -> Floats:
    """Return points x costs: how often each cost would be paid if nothing ran beside anything else."""
    unit = np.eye(len(form.costs))
    loads = replace(loads, skew_us=np.zeros(len(loads.rows)))
    added = replace(form, power=1.0)
    return added.time_us(unit, loads).T


def learnable(form: Form, loads: Batch) -> npt.NDArray[np.bool_]:
    """Return which costs any of the points has."""
    there = np.asarray((_sums(form, loads) > 0).any(axis=0))
    if form.burst:
        there[form.costs.index(BURST)] = bool(loads.rows[:, :, _CROSSES].any())
    return there


def starts(form: Form, loads: Batch, log_us: Floats, burst_us: float) -> list[Floats]:
    """Return where to start: the non-negative least squares of the sum of all costs, and equal parts of the time."""
    from scipy.optimize import nnls

    sums = _sums(form, loads)
    relative = sums / np.exp(log_us)[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-12)
    rest = 1 - loads.skew_us / np.exp(log_us)
    linear = nnls(relative / scale, rest)[0] / scale
    parts = _units(form, loads, log_us) * 0.3
    there = learnable(form, loads)
    result = []
    for guess in (linear + 0.01 * parts, parts, 2.0 * linear + 0.1 * parts):
        guess = np.where(there, guess, 0.0)
        if form.burst:
            guess[form.costs.index(BURST)] = burst_us
        if form.call:
            guess[form.costs.index(CALL)] *= 0.1
        result.append(guess)
    return result


def choose(forms: Sequence[Form], items: Sequence[FitPoint], burst_us: float) -> Solution:
    """Return the form with the least criterion, of those that have fewer costs than there are points.

    Raises `UsageError` where there are too few points for any.
    """
    loads, log_us = as_batch(items), np.array([point.log_us for point in items])
    result = []
    for form in forms:
        there = learnable(form, loads)
        if there.sum() >= len(items):
            continue
        result.append(solve(form, loads, log_us, starts(form, loads, log_us, burst_us), ~there))
    if not result:
        raise UsageError(
            f"{len(items)} different observations are too few to fit a model to",
            hint="measure direct at more sizes, and single messages: commbench sweep pairs",
        )
    return min(result, key=lambda solution: solution.criterion)


def again(solution: Solution, items: Sequence[FitPoint], log_us: Floats) -> Floats:
    """Return the costs of the same form from other points or times, from where the first fit ended."""
    loads = as_batch(items)
    fixed = ~learnable(solution.form, loads)
    guess = np.where(solution.costs > 0, solution.costs, _units(solution.form, loads, log_us) * 1e-3)
    return solve(solution.form, loads, log_us, [np.where(fixed, solution.costs, guess)], fixed).costs


def replicates(solution: Solution, items: Sequence[FitPoint], seed: int) -> Floats:
    """Return costs from resampled points, each with its launches resampled: sets x costs.

    Points of the same launches have the same ones drawn, as what slows a launch slows all of it.
    """
    rng = np.random.default_rng(seed)
    sets = []
    for _ in range(_REPLICATES):
        drawn: dict[tuple[str, int], npt.NDArray[np.int64]] = {}
        picks = rng.integers(0, len(items), len(items))
        values = []
        for pick in picks:
            point = items[pick]
            key = point.observations[0].case.setup.key, point.logs.shape[1]
            if key not in drawn:
                drawn[key] = rng.integers(0, key[1], key[1])
            with np.errstate(all="ignore"):
                lines = _medians(point.logs[:, drawn[key]])
            lines = lines[np.isfinite(lines)]
            values.append(float(np.median(lines)) if lines.size else point.log_us)
        sets.append(again(solution, [items[pick] for pick in picks], np.array(values)))
    return np.array(sets)


def _medians(logs: Floats) -> Floats:
    """Return the median of each line, NaN where nothing of it was drawn."""
    medians = np.full(len(logs), np.nan)
    there = np.isfinite(logs).any(axis=1)
    medians[there] = np.nanmedian(logs[there], axis=1)
    return medians


def left_out(solution: Solution, items: Sequence[FitPoint], of: Callable[[FitPoint], str]) -> dict[str, Floats]:
    """Return errors of points by a fit without them, for each value of `of`.

    An error is the logarithm of predicted over measured time.
    """
    errors_by_value: dict[str, Floats] = {}
    values = list(dict.fromkeys(of(point) for point in sorted(items, key=lambda point: point.size_bytes)))
    for value in values if len(values) > 1 else ():
        rest = [point for point in items if of(point) != value]
        without = [point for point in items if of(point) == value]
        loads = as_batch(rest)
        enough = learnable(solution.form, loads)
        if enough.sum() >= len(rest) or (learnable(solution.form, as_batch(items)) & ~enough).any():
            continue  # nothing is left to know some cost from
        costs = again(solution, rest, np.array([point.log_us for point in rest]))
        predicted = solution.form.time_us(costs[None], as_batch(without))[0]
        errors_by_value[value] = np.log(predicted) - np.array([point.log_us for point in without])
    return errors_by_value


def undetermined(solution: Solution, items: Sequence[FitPoint]) -> list[str]:
    """Return the costs that the points cannot separate: some change of them together changes hardly any time."""
    loads = as_batch(items)
    used = np.flatnonzero((solution.costs > 0) & learnable(solution.form, loads))
    steps = solution.costs[used] * 1e-4
    sets = np.tile(solution.costs, (len(used) + 1, 1))
    sets[np.arange(len(used)) + 1, used] += steps
    times = np.log(solution.form.time_us(sets, loads))
    slopes = ((times[1:] - times[0]) / 1e-4).T
    _, singular, directions = np.linalg.svd(slopes, full_matrices=False)
    names = []
    for value, direction in zip(singular, directions, strict=True):
        # A change by its own size that moves the points by less than 1 % together.
        if value < 0.01 * math.sqrt(len(items)):
            names += [solution.form.costs[used[number]] for number in np.flatnonzero(np.abs(direction) > 0.3)]
    return list(dict.fromkeys(names))


def has_inter(loads: CaseLoads) -> bool:
    """Return whether anything crosses links between nodes."""
    return bool(loads.rows[:, _CROSSES].any())
