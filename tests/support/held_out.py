"""Cells that a cost model has not seen: stored times of exchanges, and what its predictions of them are worth.

A file of rows (`tests/data/held_out`) has the words of a sweep, and times of its cases by layout, algorithm, size and
arguments. A cell is a layout and a size; its ways are algorithms.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commbench import stats
from commbench.cost_model import Model, Observation, Prediction
from tests.support import fake_runs

_DIGITS = 5
_LAUNCHES_FOR_INTERVAL = 6


def as_rows(observations: Iterable[Observation]) -> list[list[Any]]:
    """Return plain rows: case, launches in microseconds, skew. Nothing of the machine is in them."""
    return [
        [
            *_key(observation),
            [float(f"{us:.{_DIGITS}g}") for us in observation.launches_us],
            None if observation.skew_us is None else float(f"{observation.skew_us:.{_DIGITS}g}"),
        ]
        for observation in observations
    ]


def _key(observation: Observation) -> list[Any]:
    case = observation.case
    asked = " ".join(f"{name}={case.arguments[name]}" for name in ("round", "direction") if name in case.arguments)
    return [str(case.setup.layout), case.collective, case.label, case.size_bytes, asked]


def write(path: Path, words: Sequence[str], observations: Iterable[Observation]) -> None:
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in as_rows(observations))
    path.write_text(f'{{"words": {json.dumps(list(words))}, "rows": [\n{lines}\n]}}\n')


def read(path: Path, layouts: Sequence[str]) -> list[Observation]:
    """Return the rows of some layouts as observations."""
    stored = json.loads(path.read_text())
    rows = {tuple(row[:-2]): row[-2:] for row in stored["rows"] if row[0].replace(" ", "") in layouts}
    found = []
    for collective in dict.fromkeys(key[1] for key in rows):
        of = [key for key in rows if key[1] == collective]
        asked = [f"layout={','.join(dict.fromkeys(key[0].replace(' ', '') for key in of))}", f"collective={collective}"]
        asked += [f"sizes.list=[{','.join(map(str, sorted({key[3] for key in of})))}]"]
        asked += ["round=all", "direction=there,both"] if collective == "pairs" else []
        algorithms = ",".join(dict.fromkeys(key[2].split()[0] for key in of))
        for case in fake_runs.planned(*stored["words"], *asked, f"algorithm={algorithms}"):
            empty = Observation(case=case, launches_us=())
            if (times := rows.get(tuple(_key(empty)))) is not None:
                found.append(Observation(case=case, launches_us=tuple(times[0]), skew_us=times[1], fabric="emulated"))
    return found


def took_us(observation: Observation) -> float:
    return float(np.median(observation.launches_us))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One layout and size: what was measured and predicted of each way, by its label."""

    where: str
    measured: dict[str, Observation]
    predicted: dict[str, Prediction]

    def time_us(self, name: str) -> float:
        return took_us(self.measured[name])

    @property
    def winner(self) -> str:
        return min(self.measured, key=self.time_us)

    @property
    def named(self) -> str:
        return min(self.predicted, key=lambda name: self.predicted[name].time_us)

    @property
    def ties(self) -> set[str]:
        """Ways that are not slower than the fastest for certain, launch by launch; of few launches: that overlap."""
        won = self.winner
        best = self.measured[won].launches_us
        found = {won}
        for name, one in self.measured.items():
            launches = min(len(best), len(one.launches_us))
            ratio = stats.ratio(_launches(one)[:launches], _launches(self.measured[won])[:launches])
            if ratio is None or ratio.low is None or launches < _LAUNCHES_FOR_INTERVAL:
                tie = min(one.launches_us) <= max(best)
            else:
                tie = ratio.low <= 1
            found |= {name} if tie else set()
        return found

    @property
    def regret(self) -> float:
        return self.time_us(self.named) / self.time_us(self.winner)


def _launches(observation: Observation) -> list[stats.Floats]:
    return [np.array([time_us]) for time_us in observation.launches_us]


def cells(fitted: Model, unseen: Sequence[Observation]) -> list[Cell]:
    groups: dict[tuple[str, int], list[Observation]] = {}
    for observation in unseen:
        groups.setdefault((str(observation.case.setup.layout), observation.case.size_bytes), []).append(observation)
    found = []
    for (layout, size), members in groups.items():
        known = {o.case.label: p for o in members if (p := fitted.predict(o.case)) is not None}
        measured = {o.case.label: o for o in members}
        if len(known) > 1:
            found.append(Cell(where=f"{layout} {size // 1024}K", measured=measured, predicted=known))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What predictions of unseen cells are worth. Shares are of 1."""

    cells: int
    right: float  # the named way is the fastest, or not slower than it for certain
    exact: float  # the named way is the fastest
    constant: float  # the same as `right`, of the one way that is right most often if it is always taken
    constant_way: str
    regret: float  # the mean of named over fastest time
    worst_regret: float
    constant_regret: float
    median_error: float
    coverage: float  # of 95 % intervals
    half_width: float  # median of high over predicted time, less 1

    def __str__(self) -> str:
        return (
            f"{self.cells} cells: winner right {self.right:.0%} (exactly {self.exact:.0%}; always {self.constant_way} "
            f"{self.constant:.0%}), regret {self.regret - 1:.1%} ({self.worst_regret - 1:.0%} at most; always "
            f"{self.constant_way} {self.constant_regret - 1:.1%}), median error {self.median_error:.1%}, coverage "
            f"{self.coverage:.0%}, median half-width {self.half_width:.0%}"
        )


def judge(found: Sequence[Cell]) -> Verdict:
    often = Counter(name for cell in found for name in cell.ties)
    constant = often.most_common(1)[0][0]
    pairs = [(cell.time_us(name), said) for cell in found for name, said in cell.predicted.items()]
    regrets = [cell.regret for cell in found]
    return Verdict(
        cells=len(found),
        right=float(np.mean([cell.named in cell.ties for cell in found])),
        exact=float(np.mean([cell.named == cell.winner for cell in found])),
        constant=often[constant] / len(found),
        constant_way=constant,
        regret=float(np.mean(regrets)),
        worst_regret=max(regrets),
        constant_regret=float(np.mean([cell.time_us(constant) / cell.time_us(cell.winner) for cell in found])),
        median_error=float(np.median([abs(said.time_us / took - 1) for took, said in pairs])),
        coverage=float(np.mean([said.low_us <= took <= said.high_us for took, said in pairs])),
        half_width=float(np.median([said.high_us / said.time_us - 1 for _, said in pairs])),
    )
