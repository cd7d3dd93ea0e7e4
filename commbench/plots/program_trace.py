"""A program's trace: what of a step each exchange takes, what of that the program waits for, and the steps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from commbench.output.answer import traced, words
from commbench.plots import save
from commbench.plots.style import title
from commbench.record.describe import sentence
from commbench.record.exchanges import TracedExchange
from commbench.record.trace import ProgramTrace

_MOST_BARS = 12
_WIDTH = 9  # inches
_LETTERS = 40  # of a bar's label, a line
_EXPOSED, _LATE, _HIDDEN = "#D55E00", "#F5B58A", "#9BD0EE"
_RANKS_APART = 8  # ranks whose steps are lines of their own


def draw(trace: ProgramTrace, found: Sequence[TracedExchange], out: Path) -> list[Path]:
    """Draw `trace.png` and `trace.svg` into `out`; nothing of a trace without exchanges. Return the PNG file."""
    bars = [one for one in found if one.exposed_us is not None or one.time_us is not None][:_MOST_BARS]
    if not bars:
        return []
    step = trace.step_us()
    height = 1.7 + 0.62 * len(bars) + (2.2 if step is not None else 0)
    figure = Figure(figsize=(_WIDTH, height))
    ratios = [0.62 * len(bars) + 0.9, 2.0]
    axes = figure.subplots(2, 1, height_ratios=ratios) if step is not None else [figure.subplots()]
    _bars(axes[0], bars, step)
    if step is not None:
        _steps(axes[1], trace)
    title(figure, f"{words.begun(traced.sentences(trace, found)[0])} ({_heading(trace)})", 1 - 0.1 / height)
    figure.subplots_adjust(left=0.3, right=0.98, bottom=0.5 / height, top=1 - 0.5 / height, hspace=0.9 / height * 2)
    return save({"trace": figure}, out)


def _heading(trace: ProgramTrace) -> str:
    nodes, per_node = trace.layout()
    where = f"{nodes} x {per_node} ranks" if nodes > 1 else f"{trace.ranks} ranks"
    fabric = ", emulated links" if trace.fabric else ""
    return f"{where}, {trace.gpu or trace.transport}{fabric}"


def _bars(axes: Axes, found: Sequence[TracedExchange], step_us: float | None) -> None:
    """Draw a bar for each exchange: hidden behind work, waited for, and waited for other ranks."""
    scale = 100 / step_us if step_us else 1e-3
    labels = []
    for place, one in enumerate(reversed(found)):
        exposed = one.exposed_us or 0.0
        late = min(exposed, one.late_us or 0.0)
        parts = [(exposed - late, _EXPOSED), (late, _LATE)]
        if one.time_us is not None:
            parts.append((max(0.0, one.time_us - exposed), _HIDDEN))
        left = 0.0
        for us, colour in parts:
            axes.barh(place, us * scale, left=left, color=colour, edgecolor="white", linewidth=0.5, height=0.7)
            left += us * scale
        text, _, rest = sentence(one, step_us).partition(": ")
        labels.append("\n".join([*textwrap.wrap(text, _LETTERS), rest.rpartition("; ")[2][-_LETTERS:]]))
    axes.set_yticks(range(len(found)), labels, fontsize=7.5)
    axes.set_xlabel("% of a step" if step_us else "ms, of the whole run")
    axes.grid(True, axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    legend = [("waited for", _EXPOSED), ("waited for ranks that come later", _LATE), ("hidden behind work", _HIDDEN)]
    axes.legend(
        handles=[Patch(color=colour, label=label) for label, colour in legend],
        loc="lower right", fontsize=7.5, frameon=False,
    )  # fmt: skip


def _steps(axes: Axes, trace: ProgramTrace) -> None:
    """Draw the time of each step: a line for each rank, or the range of all."""
    by_rank: dict[int, dict[int, float]] = {}
    for one in trace.steps:
        if one.step > 0:
            by_rank.setdefault(one.rank, {})[one.step] = one.duration_us / 1e3
    if len(by_rank) <= _RANKS_APART:
        for steps in by_rank.values():
            axes.plot(list(steps), list(steps.values()), linewidth=1, alpha=0.8)
    else:
        shared = sorted(set.intersection(*({*steps} for steps in by_rank.values())))
        times = np.array([[steps[step] for step in shared] for steps in by_rank.values()])
        axes.fill_between(shared, times.min(axis=0), times.max(axis=0), color=_HIDDEN)
        axes.plot(shared, np.median(times, axis=0), color="#0072B2", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("ms")
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
