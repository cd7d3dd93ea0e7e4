"""Misfit: what a form misses, learnt from its errors where it was measured, and how sure that is elsewhere.

A form knows messages and bytes, not how they are made ready, nor that many senders to one receiver lose time. What it
is wrong by is much the same for neighbours: for sizes and layouts close to each other, and most for the same way of
exchanging. The errors are taken as a Gaussian process: a part that all ways have in common and a part of each way's
own, both smooth over octaves of size, nodes and ranks per node. So a prediction close to what was measured is
corrected by it, and the further away it is, the wider is its interval.

How large the parts are and how far they reach is what predicts best layouts, and sizes, that are left out of the fit.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from commbench.layout import Layout
from commbench.records import Case
from commbench.stats import Floats

_AMPLITUDES = (0.03, 0.08, 0.2, 0.5)  # of errors, as parts of a time
_REACHES = (1.0, 3.0, 10.0)  # octaves
_DRIFT = 0.1  # an assumption, as nothing measured can say it: what a form misses more with each octave further away
_LEAST_NOISE = 0.02
_NEIGHBOURS = 1.0  # octaves in which noise becomes another
MOST_POINTS = 160
_POINTS_TO_TRY = 80
_ALL = slice(None)
_TWO_SIDED = 1.96  # standard deviations of a normal distribution that hold 95 %


def way(case: Case) -> str:
    """Return what a case has in common with those that are likely to err alike."""
    return f"{case.collective} {case.label}"


def place(size_bytes: int, layout: Layout) -> tuple[float, float, float]:
    """Return where a case is: octaves of its size, of nodes and of ranks on each."""
    return math.log2(max(1, size_bytes)), math.log2(layout.nodes), math.log2(layout.ranks_per_node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """A fit without some points. `errors`: logarithms of measured over predicted time, of all points by that fit."""

    errors: Floats
    without: npt.NDArray[np.bool_]

    @property
    def without_errors(self) -> Floats:
        return self.errors[self.without]


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """Errors of points, logarithms of measured over predicted times, and how they are related."""

    places: tuple[tuple[float, float, float], ...]
    ways: tuple[str, ...]
    errors: tuple[float, ...]
    noises: tuple[float, ...]  # of each point: standard deviation of an error that nothing else shares
    common: float  # of what all ways share
    own: float  # of what is a way's own
    size_reach: float  # octaves in which errors become another
    layout_reach: float
    wider: float  # times the deviation, so that 95 % of what was left out is inside

    @staticmethod
    def learnt(
        places: Sequence[tuple[float, float, float]], ways: Sequence[str], errors: Floats,
        noises: Sequence[float], folds: Sequence[Fold],
    ) -> Misfit:  # fmt: skip
        """Return the misfit that predicts best what was left out; without folds what is usual."""

        def of(common: float, own: float, size_reach: float, layout_reach: float, some: slice = _ALL) -> Misfit:
            return Misfit(
                places=tuple(places[some]), ways=tuple(ways[some]), errors=tuple(errors[some].tolist()),
                noises=tuple(max(_LEAST_NOISE, float(noise)) for noise in noises[some]),
                common=common, own=own, size_reach=size_reach, layout_reach=layout_reach, wider=1.0,
            )  # fmt: skip

        usual = of(0.1, 0.1, 3.0, 3.0)
        if not folds:
            return usual
        best, least = (usual.common, usual.own, usual.size_reach, usual.layout_reach), math.inf
        some = slice(None, None, -(-len(ways) // _POINTS_TO_TRY))
        few = [Fold(errors=fold.errors[some], without=fold.without[some]) for fold in folds]
        for sizes in itertools.product(_AMPLITUDES, _AMPLITUDES, _REACHES, _REACHES):
            if (loss := -float(np.sum(_log_density(of(*sizes, some)._left_out(few))))) < least:
                best, least = sizes, loss
        found = of(*best)
        beside = np.abs(np.concatenate([error / deviation for error, deviation in found._left_out(folds)]))
        return replace(found, wider=max(1.0, float(np.quantile(beside, 0.95)) / _TWO_SIDED))

    def predict(self, where: tuple[float, float, float], way: str | None) -> tuple[float, float]:
        """Return what to add to the logarithm of a time, and its standard deviation. way: None of what is no case."""
        others = np.array([way == other for other in self.ways])
        shared = self._shared(np.array([where]), np.array(self.places), others[None])[0]
        inverse = self._inverse
        noise = self._noise(np.array([where]), others if others.any() else ~others)
        variance = self.common**2 + self.own**2 - float(shared @ inverse @ shared)
        deviation = self.wider * math.hypot(math.sqrt(max(variance, 0.0)), noise)
        return float(shared @ inverse @ np.array(self.errors)), math.hypot(deviation, _DRIFT * self.octaves(where))

    def drift(self, layout: Layout) -> float:
        """Return the standard deviation that comes on top where a layout is outside of those that were measured."""
        return _DRIFT * self.octaves((self.places[0][0], *place(1, layout)[1:]))

    def octaves(self, where: tuple[float, float, float]) -> float:
        """Return how many octaves a place is outside of what was measured: of its size, nodes, ranks per node or ranks,
        whichever is most."""
        measured, asked = (
            np.column_stack([one, one[:, 1] + one[:, 2]]) for one in (np.array(self.places), np.array([where]))
        )
        outside = np.maximum(measured.min(axis=0) - asked, asked - measured.max(axis=0))
        return float(np.max(outside, initial=0.0))

    def _noise(self, where: Floats, alike: npt.NDArray[np.bool_]) -> float:
        """Return the noise of points close by."""
        apart = (where - np.array(self.places)[alike]) / _NEIGHBOURS
        weights = np.exp(-np.sqrt((apart**2).sum(axis=-1)))
        return math.sqrt(float(np.average(np.square(self.noises)[alike], weights=weights)))

    def _shared(self, one: Floats, other: Floats, alike: npt.NDArray[np.bool_]) -> Floats:
        """Return covariances."""
        apart = one[:, None] - other[None]
        distance = np.sqrt(
            (apart[..., 0] / self.size_reach) ** 2 + (apart[..., 1:] ** 2).sum(-1) / self.layout_reach**2
        )
        covariance: Floats = np.exp(-distance) * (self.common**2 + self.own**2 * alike)
        return covariance

    @functools.cached_property
    def _covariance(self) -> Floats:
        places, ways = np.array(self.places), np.array(self.ways)
        covariance: Floats = self._shared(places, places, ways[:, None] == ways[None])
        noise: Floats = np.diag(np.square(np.array(self.noises)))
        return covariance + noise

    @functools.cached_property
    def _inverse(self) -> Floats:
        return np.asarray(np.linalg.inv(self._covariance))

    def _left_out(self, folds: Sequence[Fold]) -> list[tuple[Floats, Floats]]:
        """Return, of each fold, what is left of the errors of the points without which it is, and their deviations."""
        found = []
        for fold in folds:
            known, unknown = ~fold.without, fold.without
            if not known.any() or not unknown.any():
                continue
            weights = np.linalg.solve(self._covariance[np.ix_(known, known)], self._covariance[np.ix_(known, unknown)])
            rest = fold.errors[unknown] - weights.T @ fold.errors[known]
            variance = np.diag(self._covariance)[unknown] - (self._covariance[np.ix_(known, unknown)] * weights).sum(0)
            found.append((rest, np.sqrt(np.maximum(variance, np.square(self.noises)[unknown]))))
        return found


def _log_density(left: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Return logarithms of densities, of a distribution with heavy tails: single wild errors decide nothing."""
    return np.concatenate([-np.log(d) - 2.5 * np.log1p((e / d) ** 2 / 4) for e, d in left])
