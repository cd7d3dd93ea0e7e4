"""Fitted on direct and on pairs alone, does the cost model name the fastest algorithm? (Twenty minutes.)

On emulated clusters. The costs of a fabric are fitted to direct exchanges and to pairs at some sizes; the algorithms
are then measured at sizes between those, and the model, which has seen none of these cells, names the fastest of each.
A cell counts where every other algorithm is slower for certain: the interval of the ratio, launch by launch, above 1.

MODEL_RUNS=DIR keeps the runs in DIR, and takes those that are there already.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from commbench import cost_model, stats
from commbench.collectives import pairs
from commbench.cost_model import Model, Observation, Prediction, loads
from commbench.layout import Layout
from commbench.run_folder import RunFolder
from commbench.units import format_size
from tests.conftest import commbench

ALGORITHMS = "direct,pairwise,bruck,2d_intra_first,2d_inter_first,2d_pipelined"
# Links take most of the time, not the processors that all ranks share; but no message waits so long (200 ms) that TCP
# sends it again. Of each: settings, layouts that are fitted to, and layouts that are only predicted.
FABRICS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "100mbit, 30 kB a packet": (("link=100mbit", "message_overhead=30000"), ("4x1", "2x2"), ("8x1", "3x1")),
    "50mbit": (("link=50mbit", "message_overhead=0"), ("4x1", "2x4"), ("2x2",)),
    "500mbit, 15 kB a packet": (("link=500mbit", "message_overhead=15000"), ("8x1", "2x4", "4x4"), ("4x2",)),
}
LEARN = ("-b", "2K", "-e", "512K", "-f", "4", "launches=8")
PREDICT = ("-b", "4K", "-e", "256K", "-f", "4", "launches=6")
COMMON = ("quick", "transport=gloo", "fabric=emulated", "cap=0.15", "warmup=2", "--no-plots", "--quiet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One layout and size: times in microseconds by algorithm."""

    where: str
    measured: dict[str, Observation]
    predicted: dict[str, Prediction]

    def time_us(self, name: str) -> float:
        return float(np.median(self.measured[name].launches_us))

    @property
    def winner(self) -> str:
        return min(self.measured, key=self.time_us)

    @property
    def separated(self) -> bool:
        """Whether all others are slower for certain."""
        return self._slower(set(self.measured) - {self.winner})

    @property
    def apart(self) -> bool:
        """The same of all that do not move what the winner moves in as many steps: two orders of 2D are one way."""
        return self._slower(set(self.measured) - self._alike(self.winner))

    def _slower(self, names: set[str]) -> bool:
        best = _launches(self.measured[self.winner])
        ratios = [stats.ratio(_launches(self.measured[name]), best) for name in names]
        return all(ratio is not None and ratio.low is not None and ratio.low > 1 for ratio in ratios)

    @property
    def named(self) -> str:
        return min(self.predicted, key=lambda name: self.predicted[name].time_us)

    @property
    def named_alike(self) -> set[str]:
        """With those that move the same, so that no model of what moves can tell them apart."""
        return self._alike(self.named)

    def _alike(self, name: str) -> set[str]:
        return {other for other in self.predicted if _moves(self.measured[other]) == _moves(self.measured[name])}


def _moves(observation: Observation) -> list[bytes]:
    """What each step moves, in any order."""
    moves = loads.of_case(observation.case)
    return [] if moves is None else sorted(step.tobytes() for step in moves.rows)


def _launches(observation: Observation) -> list[stats.Floats]:
    return [np.array([time_us]) for time_us in observation.launches_us]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(os.environ.get("MODEL_RUNS", temporary))
        cells: list[Cell] = []
        for title in FABRICS:
            fitted, found = of_fabric(title, out)
            print(f"### {title}\n", *fitted.describe(), sep="\n", end="\n\n")
            show(found)
            cells += found
        summary("all", cells)


def of_fabric(title: str, out: Path) -> tuple[Model, list[Cell]]:
    words, known, new = FABRICS[title]
    seen: list[Observation] = []
    unseen: list[Observation] = []
    for layout in (*known, *new):
        nodes, ranks = map(int, layout.split("x"))
        last = pairs.rounds("tournament", Layout(nodes, ranks)) - 1
        name = f"{title} {layout}".replace(" ", "_").replace(",", "")
        rounds = (f"round=0,{last}", "direction=both,there")
        asked = (*words, f"layout={layout}", "algorithm=direct", "collective=all_to_all,pairs", *rounds, *LEARN)
        seen += swept(out / f"{name}-learn", asked) if layout in known else []
        asked = (*words, f"layout={layout}", f"algorithm={ALGORITHMS}", "collective=all_to_all", *PREDICT)
        unseen += swept(out / f"{name}-predict", asked)
    fitted = cost_model.fit(seen)
    return fitted, cells_of(fitted, unseen)


def swept(parent: Path, words: Sequence[str]) -> list[Observation]:
    """The observations of a sweep, made unless it is there."""
    if not (parent / "latest").exists():
        parent.mkdir(parents=True, exist_ok=True)
        done = commbench("sweep", *COMMON, *words, "--out", str(parent), cwd=parent, timeout=1200)
        assert done.returncode == 0, done.stderr
    return cost_model.observe(RunFolder.open(parent / "latest"))


def cells_of(fitted: Model, unseen: Sequence[Observation]) -> list[Cell]:
    groups: dict[tuple[str, int], list[Observation]] = {}
    for observation in unseen:
        groups.setdefault((str(observation.case.setup.layout), observation.case.size_bytes), []).append(observation)
    cells = []
    for (layout, size), members in groups.items():
        known = {o.case.label: found for o in members if (found := fitted.predict(o.case)) is not None}
        measured = {o.case.label: o for o in members}
        cells.append(Cell(where=f"{layout} {format_size(size)}", measured=measured, predicted=known))
    return cells


def show(cells: Sequence[Cell]) -> None:
    print(f"{'cell':<13} {'fastest (ms)':<30} {'separated':<10} {'model says (ms, and measured)':<42} right")
    for cell in cells:
        won, named = cell.winner, cell.named
        right = "yes" if won == named else "alike" if won in cell.named_alike else "no"
        right += "" if won == named else f": {cell.time_us(named) / cell.time_us(won):.2f}x slower"
        known = "yes" if cell.separated else "from others" if cell.apart else "no"
        fastest = f"{won} {cell.time_us(won) / 1e3:.2f}"
        says = f"{named} {cell.predicted[named].time_us / 1e3:.2f} ({cell.time_us(named) / 1e3:.2f})"
        print(f"{cell.where:<13} {fastest:<30} {known:<11} {says:<42} {right}")
    print()
    summary("here", cells)


def summary(name: str, cells: Sequence[Cell]) -> None:
    for text, members in (
        ("separated from all others", [cell for cell in cells if cell.separated]),
        ("separated from all that move something else", [cell for cell in cells if cell.apart]),
        ("all", cells),
    ):
        hits = sum(cell.winner in cell.named_alike for cell in members)
        tossed = sum(cell.winner in cell.named_alike and len(cell.named_alike) > 1 for cell in members)
        part = f" ({hits / len(members):.0%})" if members else ""
        print(f"{name}: {hits} of {len(members)} cells right{part}, {tossed} with one that moves the same: {text}")
    # What is lost by doing what the model says.
    loss = [cell.time_us(cell.named) / cell.time_us(cell.winner) - 1 for cell in cells]
    print(f"  following the model costs {np.mean(loss):.1%} on average, {max(loss):.0%} at most")
    by_name: dict[str, list[float]] = {}
    inside: list[bool] = []
    for cell in cells:
        for label, found in cell.predicted.items():
            by_name.setdefault(label, []).append(found.time_us / cell.time_us(label) - 1)
            inside.append(found.low_us <= cell.time_us(label) <= found.high_us)
    for label, errors in by_name.items():
        print(f"  {label:<24} median error {np.median(np.abs(errors)):6.1%}, bias {np.median(errors):+6.1%}")
    print(f"  {np.mean(inside):.0%} of {len(inside)} measured times lie in the predicted interval\n")
