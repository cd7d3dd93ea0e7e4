"""Fitting: costs of one setting from its points, by robust least squares of relative errors.

A point is all observations with the same loads, so that the many alike rounds of a tournament weigh as much as one
exchange. Residuals are logarithms of predicted over measured time; the loss is linear beyond `_FORGIVEN` (scipy's
soft_l1), so single disturbed points do not bend the fit. Costs are not negative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from commbench.cost_model.forms import BURST, CALL, Form
from commbench.cost_model.loads import RESOURCES, Batch, CaseLoads, batch
from commbench.cost_model.misfit import Fold
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
_POINTS_TO_TRY, _EVALUATIONS_TO_TRY, _FORMS_TO_FIT = 120, 15, 3
MOST_POINTS = 240  # that a fit takes; a dozen costs are not known better from more
_MOST_LEFT_OUT = 6  # parts
_VOLUMES_FOR_KNEE = 6
_HELD = 0.05  # of a cost's own size: what a resampled fit pays for a change that no point asks for
_CROSSES = list(RESOURCES).index("rank_inter")  # has loads where anything crosses links between nodes


@dataclass(frozen=True, kw_only=True)
class FitPoint:
    """Observations that move the same. `logs` is observations x launches: logarithms of microseconds, NaN padded."""

    loads: CaseLoads
    observations: tuple[Observation, ...]
    logs: Floats
    skew_us: float = 0.0

    @functools.cached_property
    def medians(self) -> Floats:
        """Return the median over launches of each observation."""
        return _medians(self.logs)

    @functools.cached_property
    def log_us(self) -> float:
        return float(np.median(self.medians))

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
        skew_us = min(skew_us, _MOST_SKEW * float(np.exp(np.median(logs[np.isfinite(logs)]))))
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
    form: Form,
    loads: Batch,
    log_us: Floats,
    guesses: Sequence[Floats],
    fixed: npt.NDArray[np.bool_],
    evaluations: int = _EVALUATIONS,
) -> Solution:
    """Return the best of several starts. Costs that are `fixed` stay as every guess has them."""
    from scipy.optimize import least_squares

    best: Solution | None = None
    free = np.flatnonzero(~fixed)
    # In units of what each cost would be if it alone took all the time, all are about 1.
    unit = _units(form, loads, log_us)[free]
    for guess in guesses:
        problem = _Problem(form, loads, log_us, guess, free, unit)
        result = least_squares(
            problem.residuals,
            np.maximum(guess[free] / unit, 1e-6),
            problem.slopes,
            bounds=(0.0, np.inf),
            loss="soft_l1",
            f_scale=_FORGIVEN,
            ftol=1e-6,
            xtol=1e-6,
            max_nfev=evaluations,
        )
        costs = problem.costs(np.where(result.x < 1e-5, 0.0, result.x))
        if best is None or result.cost < best.loss:
            best = Solution(form=form, costs=costs, loss=float(result.cost), points=len(log_us))
    assert best is not None
    return best


class _Problem:
    """What least squares asks for; residuals and slopes come together."""

    def __init__(
        self, form: Form, loads: Batch, log_us: Floats, guess: Floats, free: npt.NDArray[np.intp], unit: Floats
    ) -> None:
        self._form, self._loads, self._log_us = form, loads, log_us
        self._guess, self._free, self._unit = guess, free, unit
        self._at, self._residuals, self._slopes = b"", log_us, log_us

    def costs(self, scaled: Floats) -> Floats:
        costs = self._guess.copy()
        costs[self._free] = scaled * self._unit
        return costs

    def residuals(self, scaled: Floats) -> Floats:
        self._evaluate(scaled)
        return self._residuals

    def slopes(self, scaled: Floats) -> Floats:
        self._evaluate(scaled)
        return self._slopes

    def _evaluate(self, scaled: Floats) -> None:
        if (at := scaled.tobytes()) != self._at:
            times, slopes = self._form.slopes(self.costs(scaled), self._loads)
            times = np.maximum(times, TINY_US)
            self._residuals = np.log(times) - self._log_us
            self._slopes = slopes[:, self._free] * self._unit / times[:, None]
            self._at = at


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
    """Return which costs are fitted: those that any of the points has. A link's burst is what the fabric declares."""
    there = np.asarray((_sums(form, loads) > 0).any(axis=0))
    if form.burst:
        there[form.costs.index(BURST)] = False
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


def thinned(items: Sequence[FitPoint], most: int) -> list[FitPoint]:
    """Return at most so many points, of each way and layout in equal parts and over all its sizes."""
    if len(items) <= most:
        return list(items)

    def place(point: FitPoint) -> tuple[str, str, str, int]:
        case = point.observations[0].case
        return case.collective, case.label, point.layout, point.size_bytes

    ordered = sorted(items, key=place)
    return [ordered[number] for number in np.linspace(0, len(ordered) - 1, most).round().astype(int)]


def choose(forms: Sequence[Form], items: Sequence[FitPoint], burst_us: float) -> Solution:
    """Return the form with the least criterion, of those that have fewer costs than there are points.

    All are tried on some points and from one start, the best of them on all and from several. Raises `UsageError`
    where there are too few points for any.
    """

    def solved(form: Form, few: Sequence[FitPoint], from_starts: slice, evaluations: int) -> Solution | None:
        loads, log_us = as_batch(few), np.array([point.log_us for point in few])
        there = learnable(form, loads)
        if there.sum() >= len(few):
            return None
        guesses = starts(form, loads, log_us, burst_us)[from_starts]
        return solve(form, loads, log_us, guesses, ~there, evaluations)

    few = thinned(items, _POINTS_TO_TRY)
    tried = [one for form in forms if (one := solved(form, few, slice(1), _EVALUATIONS_TO_TRY)) is not None]
    tried.sort(key=lambda solution: solution.criterion)
    result = [one for kept in tried[:_FORMS_TO_FIT]
              if (one := solved(kept.form, items, slice(None), _EVALUATIONS)) is not None]  # fmt: skip
    if not result:
        raise UsageError(
            f"{len(items)} different observations are too few to fit a model to",
            hint="measure direct at more sizes, and single messages: commbench sweep calibration",
        )
    return min(result, key=lambda solution: solution.criterion)


def refine(solution: Solution, forms: Sequence[Form], items: Sequence[FitPoint]) -> Solution:
    """Return the best of the solution and of forms that have a cost more, each from where the solution is."""
    loads, log_us = as_batch(items), np.array([point.log_us for point in items])
    known = dict(zip(solution.form.costs, solution.costs, strict=True))
    found = [solution]
    for form in forms:
        there = learnable(form, loads)
        if there.sum() < len(items):
            units = 0.1 * _units(form, loads, log_us)
            guess = np.array([known.get(name, unit) for name, unit in zip(form.costs, units, strict=True)])
            found.append(solve(form, loads, log_us, [np.where(there, np.maximum(guess, 1e-3 * units), guess)], ~there))
    return min(found, key=lambda one: one.criterion)


def knees(form: Form, items: Sequence[FitPoint]) -> list[float]:
    """Return where a second slope might begin: KiB that the busiest owner carries between nodes in a step."""
    most = [form.busiest_kib(point.loads) for point in items]
    there = [kib for kib in most if kib > 0]
    if len(set(there)) < _VOLUMES_FOR_KNEE:
        return []
    return sorted({float(f"{kib:.3g}") for kib in np.quantile(there, (0.3, 0.5, 0.7, 0.85))})


def again(solution: Solution, items: Sequence[FitPoint], log_us: Floats) -> Floats:
    """Return the costs of the same form from other points, from where the first fit ended."""
    loads = as_batch(items)
    fixed = ~learnable(solution.form, loads)
    guess = np.where(solution.costs > 0, solution.costs, _units(solution.form, loads, log_us) * 1e-3)
    guesses = [np.where(fixed, solution.costs, guess)]
    return solve(solution.form, loads, log_us, guesses, fixed, _EVALUATIONS_TO_TRY).costs


def replicates(solution: Solution, items: Sequence[FitPoint], seed: int) -> Floats:
    """Return costs from resampled points, each with its launches resampled: sets x costs.

    Points of the same launches have the same ones drawn, as what slows a launch slows all of it. Each set is one step
    from the solution, by its slopes there, with costs of 0 or more.
    """
    from scipy.optimize import lsq_linear

    form, loads = solution.form, as_batch(items)
    log_us = np.array([point.log_us for point in items])
    free = np.flatnonzero(learnable(form, loads))
    unit = np.maximum(solution.costs, 0.1 * _units(form, loads, log_us))[free]
    times, slopes = form.slopes(solution.costs, loads)
    predicted = np.log(np.maximum(times, TINY_US))
    slopes = slopes[:, free] * unit / np.maximum(times, TINY_US)[:, None]
    rng = np.random.default_rng(seed)
    by_launches: dict[tuple[str, int], list[int]] = {}
    for number, point in enumerate(items):
        key = point.observations[0].case.setup.key, point.logs.shape[1]
        by_launches.setdefault(key, []).append(number)
    sets = []
    for _ in range(_REPLICATES):
        picks = rng.integers(0, len(items), len(items))
        values = log_us.copy()
        for (_, launches), members in by_launches.items():
            drawn = rng.integers(0, launches, launches)
            lines = _medians(np.concatenate([items[number].logs for number in members])[:, drawn])
            ends = np.cumsum([len(items[number].logs) for number in members])
            for number, end in zip(members, ends, strict=True):
                there = lines[end - len(items[number].logs) : end]
                if np.isfinite(there).any():
                    values[number] = there[0] if len(there) == 1 else np.nanmedian(there)
        errors = (predicted - values)[picks]
        weights = (1 + (errors / _FORGIVEN) ** 2) ** -0.25
        # What the points do not determine stays as it is.
        rows = np.vstack([slopes[picks] * weights[:, None], _HELD * np.eye(len(free))])
        moved = lsq_linear(
            rows, np.concatenate([-errors * weights, np.zeros(len(free))]),
            bounds=(-solution.costs[free] / unit, np.inf),
        ).x  # fmt: skip
        costs = solution.costs.copy()
        costs[free] = np.maximum(costs[free] + moved * unit, 0.0)
        sets.append(costs)
    return np.array(sets)


def _medians(logs: Floats) -> Floats:
    """Return the median of each line, NaN where nothing of it was drawn."""
    there = np.isfinite(logs)
    if there.all():
        return np.asarray(np.median(logs, axis=1))
    return np.array(
        [np.median(line[known]) if known.any() else np.nan for line, known in zip(logs, there, strict=True)]
    )


def left_out(solution: Solution, items: Sequence[FitPoint], of: Callable[[FitPoint], str]) -> dict[str, Fold]:
    """Return errors of points by a fit without them, for each value of `of`; of many values for each of some ranges."""
    folds: dict[str, Fold] = {}
    values = list(dict.fromkeys(of(point) for point in sorted(items, key=lambda point: point.size_bytes)))
    for number in range(min(len(values), _MOST_LEFT_OUT) if len(values) > 1 else 0):
        part = values[number * len(values) // _MOST_LEFT_OUT : (number + 1) * len(values) // _MOST_LEFT_OUT]
        part = part if len(values) > _MOST_LEFT_OUT else [values[number]]
        rest = [point for point in items if of(point) not in part]
        without = np.array([of(point) in part for point in items])
        loads = as_batch(rest)
        enough = learnable(solution.form, loads)
        if enough.sum() >= len(rest) or (learnable(solution.form, as_batch(items)) & ~enough).any():
            continue  # nothing is left to know some cost from
        costs = again(solution, rest, np.array([point.log_us for point in rest]))
        predicted = solution.form.time_us(costs[None], as_batch(items))[0]
        name = part[0] if len(part) == 1 else f"{part[0]} .. {part[-1]}"
        folds[name] = Fold(errors=np.array([point.log_us for point in items]) - np.log(predicted), without=without)
    return folds


def undetermined(solution: Solution, items: Sequence[FitPoint]) -> list[str]:
    """Return the costs that the points cannot separate, those that were fitted as 0 among them.

    Such costs only come together in what was measured: some change of them, each worth a good part of the times, all
    together changes hardly any time.
    """
    form, loads = solution.form, as_batch(items)
    log_us = np.array([point.log_us for point in items])
    free = np.flatnonzero(learnable(form, loads))
    scales = np.maximum(solution.costs, 0.3 * _units(form, loads, log_us))
    times, slopes = form.slopes(np.where(solution.costs > 0, solution.costs, 1e-6 * scales), loads)
    relative = slopes[:, free] * scales[free] / np.maximum(times, TINY_US)[:, None]
    _, singular, directions = np.linalg.svd(relative, full_matrices=False)
    names: list[str] = []
    for value, direction in zip(singular, directions, strict=True):
        there = np.flatnonzero(np.abs(direction) > 0.3)
        if value < 0.01 * math.sqrt(len(items)) and len(there) > 1:
            names += [form.costs[free[number]] for number in there]
    return [name for name in form.costs if name in names]


def has_inter(loads: CaseLoads) -> bool:
    """Return whether anything crosses links between nodes."""
    return bool(loads.rows[:, _CROSSES].any())
