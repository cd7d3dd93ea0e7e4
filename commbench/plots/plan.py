"""The picture of a plan: where the time of the best strategies goes, what their memory holds, and how the choice moves
with the number of nodes, the rate between them and the skew of experts."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commbench.errors import UsageError
from commbench.files import write_named
from commbench.output.grid import number
from commbench.plots.style import picture, title
from commbench.strategy.choices import choices
from commbench.strategy.clusters import scaled
from commbench.strategy.memory import GIB
from commbench.strategy.ranking import PlanProblem, Ranking
from commbench.strategy.tagged import Tagged

_SHOWN = 5
_LETTERS = 36  # of a line of a bar's label
_COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#999999", "#CC79A7", "#009E73")
_TIMES = ("compute", "inter", "intra", "bubble", "launch", "optimizer")
_MEMORY = ("weights", "gradients", "optimizer", "activations", "working")
_NODES, _RATES, _SKEWS = (0.5, 1, 2, 4, 8), (0.125, 0.25, 0.5, 1, 2, 4), (1.0, 1.5, 2.0, 3.0, 5.0)


def save(path: Path, problem: PlanProblem, ranking: Ranking) -> None:
    """Draw the picture into a .png or .svg file. Raises `UsageError` where it cannot be written."""
    data = picture(draw(problem, ranking), path.suffix.lower().removeprefix("."))
    try:
        write_named(path, data)
    except OSError as error:
        raise UsageError(
            f"cannot write {str(path)!r}: {error.strerror}", hint="--plot FILE, in a folder of yours"
        ) from error


def draw(problem: PlanProblem, ranking: Ranking) -> Figure:
    """Return the picture."""
    shown = [one.best for one in choices(ranking.ranked)[:_SHOWN]]
    labels = ["\n".join(textwrap.wrap(f"{one.rank}: {one.setting.label}", _LETTERS)) for one in shown]
    figure = Figure(figsize=(12, 8.2))
    grid = figure.add_gridspec(2, 6, hspace=0.55, wspace=1.1, left=0.2, right=0.98, top=0.88, bottom=0.15)
    times, memory = figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])
    _stacked(times, labels, {name: [one.parts_us[name] / 1e3 for one in shown] for name in _TIMES}, "ms of a step")
    parts = {name: [one.memory_parts_gib[name] for one in shown] for name in _MEMORY}
    parts["beside tensors"] = [one.needed_gib - one.memory_gib for one in shown]
    _stacked(memory, [str(one.rank) for one in shown], parts, "GiB of a GPU")
    memory.axvline(problem.cluster.memory_gib.value, color="#444444", linewidth=1, linestyle=":")
    moves: list[tuple[str, Sequence[float], Callable[[float], PlanProblem]]] = [
        ("nodes", [one * problem.cluster.nodes for one in _NODES if one * problem.cluster.nodes >= 1],
         lambda value: dataclasses.replace(problem, cluster=scaled(problem.cluster, nodes=int(value)))),
    ]  # fmt: skip
    if "inter" in problem.cluster.links and problem.cluster.nodes > 1 and problem.cluster.costs is None:
        base = problem.cluster.links["inter"].gbs.value
        moves.append(("GB/s of a node to the others", [one * base for one in _RATES], lambda value: dataclasses.replace(
            problem, cluster=scaled(problem.cluster, inter=value / base))))  # fmt: skip
    if problem.uneven is not None:
        moves.append(("tokens of the fullest expert over the mean", _SKEWS, lambda value: dataclasses.replace(
            problem, uneven=Tagged(value, "declared"))))  # fmt: skip
    for place, (name, values, make) in enumerate(moves):
        _moves(figure.add_subplot(grid[1, 2 * place : 2 * place + 2]), name, values, make)
    first = ranking.ranked[0]
    title(figure, f"{problem.model.name} on {problem.cluster.gpus} GPUs: {first.setting.label}, "
                  f"{number(first.us / 1e3)} ms a step", 0.98)  # fmt: skip
    figure.text(0.01, 0.01, "predicted. Bars: the middle of all draws. Below: the best strategy's step if one number "
                "changes; a letter stands where the choice moves.", fontsize=7.5, color="#555555")  # fmt: skip
    return figure


def _stacked(axes: Axes, labels: Sequence[str], parts: dict[str, list[float]], label: str) -> None:
    left = np.zeros(len(labels))
    for (name, values), colour in zip(parts.items(), _COLOURS, strict=False):
        if max(values) > 0:
            axes.barh(range(len(labels)), values, left=left, color=colour, label=name, height=0.7)
            left = left + np.array(values)
    axes.set_yticks(range(len(labels)), labels, fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.legend(frameon=False, fontsize=7.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def _moves(axes: Axes, name: str, values: Sequence[float], make: Callable[[float], PlanProblem]) -> None:
    """Draw the best step of each value, of the middle draw, with the strategy's name where it changes."""
    points: list[tuple[float, float, str]] = []
    for value in values:
        changed = make(value)
        try:
            settings = changed.settings()
        except UsageError:
            continue
        fits = changed.memory(settings).needed <= changed.cluster.memory_gib.value * GIB
        if not fits.any():
            continue
        settings = settings.take(fits)
        us = changed.times(settings, changed.draw(1)).us[0]
        best = int(np.argmin(us))
        its = settings[best]
        sizes = [f"{size}{getattr(its, size)}" for size in ("tp", "cp", "pp", "ep", "etp") if getattr(its, size) > 1]
        points.append((value, float(us[best]) / 1e3, " ".join([*sizes, its.schedule.label])))
    axes.set_xlabel(name, fontsize=8)
    axes.set_ylabel("ms of the best step", fontsize=8)
    if not points:
        axes.text(0.5, 0.5, "fits nowhere", ha="center", transform=axes.transAxes, fontsize=8)
        return
    axes.plot([one[0] for one in points], [one[1] for one in points], "o-", color="#0072B2", markersize=4)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0, top=1.25 * max(one[1] for one in points))
    axes.set_xticks([one[0] for one in points], [f"{one[0]:g}" for one in points], fontsize=7.5)
    axes.minorticks_off()
    names = list(dict.fromkeys(label for _, _, label in points))
    last = ""
    for value, ms, label in points:
        if label != last:
            axes.annotate("abcdefgh"[names.index(label)], (value, ms), textcoords="offset points", xytext=(0, 6),
                          fontsize=9, fontweight="bold", ha="center")  # fmt: skip
        last = label
    told = "\n".join(f"{letter}: {label}" for letter, label in zip("abcdefgh", names, strict=False))
    axes.text(0.0, -0.24, told, transform=axes.transAxes, fontsize=7.5, va="top")
