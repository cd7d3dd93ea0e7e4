"""Model: the fitted costs of every setting that was observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from commbench.cost_model import loads
from commbench.cost_model.costs import FEWEST_POINTS, Fitted, Prediction, fit_setting
from commbench.cost_model.loads import CaseLoads
from commbench.cost_model.observe import Observation, describe_setting, setting
from commbench.errors import CorruptFile, UsageError
from commbench.records import Case

# History of the format:
# 1  first version
# 2  settings have what the form misses, what a calibration has and they lack, and the least that was measured
FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Model:
    """`settings`: by `observe.setting`, as costs on one fabric say nothing of another."""

    settings: Mapping[str, Fitted]
    notes: tuple[str, ...] = ()  # what could not be fitted, and why

    @property
    def r2(self) -> float:
        """Return how much of the variance of logarithms of times the fit explains; of several settings the least."""
        return min(fitted.r2 for fitted in self.settings.values())

    def predict(self, case: Case) -> Prediction | None:
        """Return the time of a case, measured or not.

        None where nothing can be said: nothing of its setting was measured, or of a class of link that it needs; the
        algorithm cannot run there; or a library chooses what moves.
        """
        return self.predictions([case])[0]

    def predictions(self, cases: Sequence[Case]) -> list[Prediction | None]:
        """Return the same of many cases, in their order, much faster than one by one."""
        found: list[Prediction | None] = [None] * len(cases)
        asked: dict[str, list[tuple[int, CaseLoads]]] = {}
        known = loads.Known()
        for number, case in enumerate(cases):
            key = setting(case)
            if key in self.settings and (moves := known.of_case(case)) is not None:
                asked.setdefault(key, []).append((number, moves))
        for key, members in asked.items():
            said = self.settings[key].predict_all([(cases[number], moves) for number, moves in members])
            for (number, _), prediction in zip(members, said, strict=True):
                found[number] = prediction
        return found

    def describe(self) -> list[str]:
        """Return the model in words, line by line."""
        from commbench.cost_model.describe import lines

        return [line for fitted in self.settings.values() for line in lines(fitted)] + list(self.notes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "format_version": FORMAT_VERSION,
            "settings": {key: fitted.as_dict() for key, fitted in self.settings.items()},
            "notes": list(self.notes),
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Model:
        """Read what `as_dict` wrote. Raises `CorruptFile` where it did not write it."""
        if raw.get("format_version") not in range(1, FORMAT_VERSION + 1):
            raise CorruptFile(
                f"the cost model has format {raw.get('format_version')!r}, this commbench reads 1 to {FORMAT_VERSION}",
                hint="fit it again: commbench model RUN...",
            )
        try:
            settings = {key: Fitted.from_dict(fitted) for key, fitted in raw["settings"].items()}
            return Model(settings, tuple(raw["notes"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(
                f"the cost model cannot be read: {type(error).__name__}: {error}",
                hint="fit it again: commbench model RUN...",
            ) from error


def fit(observations: Sequence[Observation], *, seed: int = 0) -> Model:
    """Fit a model. Raises `UsageError` where there is too little to learn any costs from."""
    groups: dict[str, list[tuple[Observation, CaseLoads]]] = {}
    without_loads, known = 0, loads.Known()
    for observation in observations:
        if not observation.launches_us or min(observation.launches_us) <= 0:
            continue
        moves = known.of_case(observation.case)
        if moves is None:
            without_loads += 1
        else:
            groups.setdefault(setting(observation.case), []).append((observation, moves))
    settings: dict[str, Fitted] = {}
    notes: list[str] = []
    for key, pairs in groups.items():
        text = describe_setting(pairs[0][0].case)
        points = len({moves.identity for _, moves in pairs})
        sizes = len({observation.case.size_bytes for observation, _ in pairs})
        if points < FEWEST_POINTS or sizes < 2:
            notes.append(
                f"{text}: {points} different exchange{'s' if points != 1 else ''} of {sizes} "
                f"size{'s' if sizes != 1 else ''}, {FEWEST_POINTS} of 2 sizes are needed"
            )
        else:
            try:
                settings[key] = fit_setting(pairs, seed=seed)
            except UsageError as error:
                notes.append(f"{text}: {error}")
    if not settings:
        if not notes:
            notes = [
                f"{without_loads} cases in which nothing moves, or nobody knows what moves"
                if without_loads
                else "no observations"
            ]
        raise UsageError(
            f"too few observations to fit costs: {'; '.join(notes)}",
            hint="measure exchanges and pairs of several sizes and layouts: commbench sweep calibration",
        )
    return Model(settings, tuple(f"not fitted: {note}" for note in notes))
