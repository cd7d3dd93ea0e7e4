"""Who explains a matrix: the few suspects without which the times of a class of link would all be alike.

Times are logarithms, medians over launches once what slows a whole launch is taken off. Each class of link (inside
nodes, between them) has one usual time, the median of the messages that no culprit touches. A suspect slows all of its
messages; it is judged by how much of the deviation (sum of absolute residuals) goes if it is believed. The best
suspect is named, if its slow-down is large enough, cannot be chance, and was there launch after launch; what it
touches is then left out, and the rest is searched again. So a link that is slow because its rank is slow has no
second name, and what hides behind a culprit is found after that was repaired. Where launches are too few for an
interval nobody is named, but `Search.unclear` says who would be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from commbench import stats
from commbench.analysis.stragglers import suspects
from commbench.analysis.stragglers.suspects import Suspect
from commbench.layout import LINK_CLASSES, Layout
from commbench.stats import Floats, Interval

MIN_EFFECT = 1.3
CHANCE = 0.05  # of naming anybody in a healthy system, all suspects of all matrices together
_TAIL = 5  # degrees of freedom, at the most: times have heavier tails than a normal distribution
_MOST = 0.75  # of a suspect's messages must be slow: half of them are the mark of somebody else
_LEAST_USUAL = 0.2  # of a class must be left to compare with
_LEAST_SPREAD = 0.01  # of logarithms: nobody's clock and code are more alike than that
_MAD = 1.4826  # makes a median absolute deviation a standard deviation, if normal
_MEDIAN = 1.2533  # standard error of a median over that of a mean, if normal

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """Somebody who is slow, and how that is known. Ratios are of times: 2 takes twice as long."""

    kind: str
    name: str
    about: dict[str, Any]
    ratio: float
    low: float | None  # 95 % interval; None only where nothing is named
    high: float | None
    interval_of: str | None  # "launches", or "messages" of all launches where those are few
    other_way: float | None  # the ratio of the messages in the other direction, where it is slow in one only
    launches: int
    launches_slow: int  # in which it was at least half of the least effect, in logarithms
    chance: float  # at most, that a healthy system shows this anywhere
    time_us: dict[str, float]  # by class of link: its messages
    usual_us: dict[str, float]  # those that no culprit touches
    messages: int
    usual_messages: int
    cells: frozenset[int] = field(default=frozenset(), repr=False)


class Search:
    """One matrix, launches x senders x receivers. `tests` is how many suspects there are in all matrices together."""

    def __init__(self, time_us: Floats, layout: Layout, *, min_effect: float = MIN_EFFECT, tests: int = 0) -> None:
        self._layout = layout
        self._least = math.log(min_effect)
        self._tests = max(tests, suspects.count(layout))
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = np.log(time_us.reshape(len(time_us), -1))
        self._class = suspects.classes(layout)
        known = np.isfinite(logs).any(axis=0) & (self._class >= 0)
        self._class = np.where(known, self._class, -1)
        logs[:, ~known] = np.nan
        logs[~np.isfinite(logs)] = np.nan
        self._logs = logs - _drift(logs, known)[:, None]
        self._centre = np.full(known.size, np.nan)
        self._centre[known] = np.nanmedian(self._logs[:, known], axis=0)
        self._explained = np.zeros(known.size, dtype=bool)
        self._reached = np.zeros(known.size, dtype=bool)  # where a culprit may have a hand in
        self.unclear: Straggler | None = None

    def run(self) -> list[Straggler]:
        chosen: list[Suspect] = []
        everyone = suspects.shared(self._layout)
        while best := self._best(everyone):
            chosen.append(best)
            # A rank that is slow to receive may be slow to send, to another degree: nothing of it judges others.
            self._explained[best.cells if best.kind == "link" else best.reach] = True
            self._reached[best.reach] = True
        if doubtful := self._best(everyone, certain=False):
            self.unclear = self._judge(doubtful, self._open(doubtful), certain=False)
        stragglers = []
        for suspect in chosen:  # each again, now that no other culprit disturbs what it is compared with
            others = [other.cells for other in chosen if other is not suspect]
            own = suspect.cells[~np.isin(suspect.cells, np.concatenate(others))] if others else suspect.cells
            straggler = self._judge(suspect, own)
            stragglers += [straggler] if straggler is not None else []
        return stragglers

    def _open(self, suspect: Suspect) -> npt.NDArray[np.int64]:
        """Return its cells that are known and that nobody explains yet."""
        return suspect.cells[~self._explained[suspect.cells] & (self._class[suspect.cells] >= 0)]

    def _best(self, everyone: Sequence[Suspect], *, certain: bool = True) -> Suspect | None:
        candidates: dict[bytes, tuple[float, Suspect, npt.NDArray[np.int64]]] = {}
        off = self._excess()
        for suspect in self._candidates(everyone, off):
            cells = self._open(suspect)
            if cells.size and not (suspect.small and self._reached[cells].any()):
                candidates.setdefault(cells.tobytes(), (float(off[cells].sum()), suspect, cells))
        best: tuple[float, Suspect] | None = None
        for most, suspect, cells in sorted(candidates.values(), key=lambda item: -item[0]):
            if best is not None and 2 * most < best[0]:
                break  # about all that it can gain; twice that, as usual times change a little with who is believed
            gain = self._gain(cells)
            if (best is None or gain > best[0]) and self._judge(suspect, cells, certain=certain):
                best = gain, suspect
        return best[1] if best else None

    def _excess(self) -> Floats:
        """Return how far above its class each cell is; 0 where it is below, or not known."""
        usual = self._usual(np.empty(0, dtype=np.int64)) or {}
        level = np.array([usual.get(link, np.nan) for link in range(len(LINK_CLASSES))])[np.maximum(self._class, 0)]
        excess: Floats = np.nan_to_num(np.maximum(self._centre - level, 0.0), nan=0.0)
        return np.where(self._class >= 0, excess, 0.0)

    def _candidates(self, everyone: Sequence[Suspect], off: Floats) -> Iterable[Suspect]:
        odd = np.flatnonzero((off >= self._least / 2) & ~self._explained)
        yield from suspects.single(self._layout, odd.tolist())
        yield from everyone

    def _rest(self, cells: npt.NDArray[np.int64]) -> Mask:
        """Return what no culprit touches, if these are one's."""
        rest = ~self._explained & (self._class >= 0)
        rest[cells] = False
        return rest

    def _usual(self, cells: npt.NDArray[np.int64]) -> dict[int, float] | None:
        """Return the usual time of each class of `cells`, of all classes without any; None where too little is left."""
        rest = self._rest(cells)
        usual = {}
        for link in np.unique(self._class[cells]) if cells.size else range(len(LINK_CLASSES)):
            left = rest & (self._class == link)
            if left.sum() < max(2, _LEAST_USUAL * (self._class == link).sum()):
                if cells.size:
                    return None
                continue
            usual[int(link)] = float(np.median(self._centre[left]))
        return usual

    def _gain(self, cells: npt.NDArray[np.int64]) -> float:
        """Return how much of the sum of absolute residuals goes if what is in `cells` is slow."""
        usual = self._usual(cells)
        if usual is None:
            return -math.inf
        free = ~self._explained
        gain = 0.0
        for link, level in usual.items():
            of_class = self._centre[free & (self._class == link)]
            mine = self._centre[cells[self._class[cells] == link]]
            rest = self._centre[self._rest(cells) & (self._class == link)]
            effect = max(0.0, float(np.median(mine)) - level)
            before = np.abs(of_class - np.median(of_class)).sum()
            gain += float(before - np.abs(rest - level).sum() - np.abs(mine - level - effect).sum())
        return gain

    def _judge(self, suspect: Suspect, cells: npt.NDArray[np.int64], *, certain: bool = True) -> Straggler | None:
        """Return what is to be said against a suspect by these of its cells, None if that is not enough.

        `certain`: nothing is said without an interval.
        """
        cells = cells[self._class[cells] >= 0]
        usual = self._usual(cells) if cells.size else None
        if usual is None:
            return None
        of = self._class[cells]
        excess = self._centre[cells] - np.array([usual[link] for link in of])
        effects = {link: float(np.median(excess[of == link])) for link in usual}
        if suspect.everywhere and len(usual) < len(np.unique(suspects.classes(self._layout)[suspect.cells])):
            return None  # only a part of it can be seen, and that part has a name of its own
        if np.median(excess) < self._least or min(effects.values()) < self._least / 2:
            return None
        if np.mean(excess >= self._least / 2) < _MOST:
            return None
        chance = min(1.0, self._tests * self._p(cells, usual, effects))
        if chance > CHANCE:
            return None
        ratios, interval = self._interval(cells)
        slow = int((np.log(ratios) >= self._least / 2).sum())
        if 2 * slow <= len(ratios) or (interval is not None and interval.low <= 1):
            return None
        if interval is None and (certain or slow < len(ratios)):
            return None
        rest = self._rest(cells)
        names = {link: LINK_CLASSES[link] for link in usual}
        ratio = float(np.median(ratios))
        low, high, interval_of = interval.around(ratio) if interval else (None, None, None)
        return Straggler(
            kind=suspect.kind,
            name=suspect.name,
            about=suspect.about,
            ratio=ratio,
            low=low,
            high=high,
            interval_of=interval_of,
            other_way=self._other_way(suspect, usual),
            launches=len(ratios),
            launches_slow=slow,
            chance=chance,
            time_us={name: float(np.exp(np.median(self._centre[cells[of == link]]))) for link, name in names.items()},
            usual_us={name: math.exp(usual[link]) for link, name in names.items()},
            messages=cells.size,
            usual_messages=int(sum((rest & (self._class == link)).sum() for link in usual)),
            cells=frozenset(suspect.cells.tolist()),
        )

    def _other_way(self, suspect: Suspect, usual: dict[int, float]) -> float | None:
        cells = np.setdiff1d(suspect.reach, suspect.cells)
        cells = cells[np.isin(self._class[cells], list(usual))]
        if not cells.size:
            return None
        return float(np.exp(np.median(self._centre[cells] - np.array([usual[link] for link in self._class[cells]]))))

    def _p(self, cells: npt.NDArray[np.int64], usual: dict[int, float], effects: dict[int, float]) -> float:
        """Return the one-sided p that the median of so many messages of a healthy class is so far off."""
        from scipy.stats import t  # half a second, which only this command needs

        rest = self._rest(cells)
        scores, free = [], 0
        for link, level in usual.items():
            left = np.abs(self._centre[rest & (self._class == link)] - level)
            mine = np.abs(self._centre[cells[self._class[cells] == link]] - level - effects[link])
            # A few messages may be alike by chance: not more than launches let them be.
            spread = max(_MAD * float(np.median(np.concatenate([left, mine]))), self._noise(link), _LEAST_SPREAD)
            free += left.size - 1
            scores.append(effects[link] / (_MEDIAN * spread / math.sqrt(mine.size)))
        return float(t.sf(sum(scores) / math.sqrt(len(scores)), min(_TAIL, free)))

    def _noise(self, link: int) -> float:
        """Return the standard error of a cell of a class, by how much its launches differ; 0 of one launch."""
        launches = len(self._logs)
        apart = np.abs(self._logs[:, self._class == link] - self._centre[self._class == link])
        if launches < 2 or not np.isfinite(apart).any():
            return 0.0
        spread = _MAD * float(np.nanmedian(apart)) * math.sqrt(launches / (launches - 1))
        return _MEDIAN * spread / math.sqrt(launches)

    def _interval(self, cells: npt.NDArray[np.int64]) -> tuple[Floats, Interval | None]:
        """Return the slow-down in each launch, and the 95 % interval of its median, None if it is not estimable."""
        rest = self._rest(cells)
        of = self._class[cells]
        excess = np.full((len(self._logs), cells.size), np.nan)
        for link in np.unique(of):
            left = self._logs[:, rest & (self._class == link)]
            there = np.isfinite(left).any(axis=1)
            level = np.full(len(self._logs), np.nan)
            level[there] = np.nanmedian(left[there], axis=1)
            excess[:, of == link] = self._logs[:, cells[of == link]] - level[:, None]
        launches = np.isfinite(excess).any(axis=1)
        per_launch = np.exp(np.nanmedian(excess[launches], axis=1))
        if len(per_launch) >= stats.LAUNCHES_FOR_INTERVAL:
            return per_launch, stats.interval([np.array([ratio]) for ratio in per_launch])
        known = stats.interval([np.exp(excess[np.isfinite(excess)])])
        return per_launch, known._replace(of="messages") if known else None


def _drift(logs: Floats, known: Mask) -> Floats:
    """Return what slowed each launch as a whole: the median over messages of how far they are from their own median."""
    if not known.any():
        return np.zeros(len(logs))
    apart = logs[:, known] - np.nanmedian(logs[:, known], axis=0)
    return np.array([float(np.nanmedian(line)) if np.isfinite(line).any() else 0.0 for line in apart])
