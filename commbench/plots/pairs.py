"""The heat map of all pairs of ranks: who sends down, who receives across, nodes set apart; dark is slow.

A cell is compared with the median of its class of link, so that links inside nodes, which are faster, hide nothing of
those between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from commbench.analysis.pair_matrices import Matrix
from commbench.analysis.stragglers import suspects
from commbench.analysis.stragglers.search import Search, Straggler
from commbench.layout import LINK_CLASSES, Layout, LinkClass
from commbench.output.answer import words
from commbench.output.parquet import frame
from commbench.plots.settings import complete, file_name, file_words, join, layout_text, nodes_text, title_words
from commbench.plots.style import caption, title
from commbench.records import network_note
from commbench.units import format_size, gbps

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

READ = "How to read this: a row is a sender, a column a receiver; 2 takes twice as long as is usual for its class."
_MOST_NUMBERS = 16  # ranks, with a number in each cell
_MOST_RANKS = 32  # named each; of more only nodes are
_JUDGED_RANKS = 64  # of more, the search for stragglers takes longer than the picture
_LEAST_RANGE = 2.0  # of the colours: noise shall not look like a finding
_FINE_TICKS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
_NOTHING = "#e8e8e8"
_MOST_NAMED = 3  # in a title
_INCHES = {"left": 1.25, "right": 1.35, "top": 0.95, "bottom": 1.45}
_CLASSES = {"intra": "inside nodes", "inter": "between nodes"}


def heat_maps(rows: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw figures, by file name, one for each matrix in `meta["pairs"]`; `rows` are not looked at."""
    figures = {}
    matrices = meta.get("pairs", ())
    tests = sum(suspects.count(matrix.layout) for matrix in matrices)
    for matrix in matrices:
        setting: dict[Any, Any] = complete(frame([matrix.row], "")).iloc[0].to_dict()
        named = ["pairs", *matrix.row.what.split()[1:], setting["transport"], layout_text(setting)]
        named += [*file_words(setting).values(), format_size(matrix.size_bytes)]
        name = file_name([word.replace("=", "-") for word in named])
        figures[name if name not in figures else f"{name}-{matrix.key[:6]}"] = _figure(matrix, setting, meta, tests)
    return figures


class PairsMap(NamedTuple):
    """A matrix as it is drawn. values: time over what is usual, senders x receivers; usual: by class of link."""

    values: Any
    usual: Mapping[LinkClass, float]
    title: str
    note: str  # in words: what is usual, and how often it was measured


def map_of(matrix: Matrix, tests: int) -> PairsMap:
    """Return a matrix as it is drawn. tests: how many candidates all matrices have, each of which could be slow."""
    slow = _stragglers(matrix, tests)
    usual = _usual_us(matrix, slow or ())
    setting: dict[Any, Any] = complete(frame([matrix.row], "")).iloc[0].to_dict()
    what = " ".join(["pairs", *matrix.row.what.split()[1:]])
    text = join(f"{what} over {setting['transport']}", format_size(matrix.size_bytes), nodes_text(setting))
    of = join(text, *title_words(setting).values())
    found = _conclusion(slow)
    medians = "; ".join(f"{_CLASSES[link]} {_medium(us, matrix.size_bytes)}" for link, us in usual.items())
    counted = f"{words.count(matrix.launches, 'launch')}{'' if _complete(matrix) else '; grey: not measured'}"
    note = f"Usual, of messages that nobody slow touches: {medians}.\nMedians of {counted}."
    values = matrix.median_us / _spread(usual, matrix.layout)
    return PairsMap(values, usual, f"{found} ({of})" if found else of, note)


def _figure(matrix: Matrix, setting: Mapping[str, Any], meta: Mapping[str, Any], tests: int) -> Figure:
    n = matrix.layout.ranks
    drawn = map_of(matrix, tests)
    values = drawn.values
    side = max(3.6, 0.46 * n) if n <= _MOST_NUMBERS else 7.4
    width, height = side + _INCHES["left"] + _INCHES["right"], side + _INCHES["top"] + _INCHES["bottom"]
    figure = Figure(figsize=(max(width, 6.6), height))
    width = max(width, 6.6)
    left, bottom = _INCHES["left"] + (width - side - _INCHES["left"] - _INCHES["right"]) / 2, _INCHES["bottom"]
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    colours = colormaps["viridis_r"].with_extremes(bad=_NOTHING)
    low, high = colour_range(values)
    norm = LogNorm(low, high)
    axes.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, interpolation="nearest")
    if n <= _MOST_NUMBERS:
        _numbers(axes, values, norm)
    _ranks(axes, matrix)
    bar_axes = figure.add_axes(((left + side + 0.22) / width, bottom / height, 0.2 / width, side / height))
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=colours), cax=bar_axes)
    bar.ax.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.9g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize=8.5)
    bar.set_label("time / usual time of its class of link (dark: slow)", fontsize=9)
    title(figure, drawn.title, 1 - 0.12 / height)
    note = [READ, f"{drawn.note} Who is slow, and how sure that is: commbench stragglers RUN"]
    caption(figure, meta, "\n".join(filter(None, [*note, network_note(setting["fabric"])])))
    return figure


def _usual_us(matrix: Matrix, slow: Sequence[Straggler]) -> dict[LinkClass, float]:
    """Return the median time of the messages of each class of link that has some: of those that nobody slow touches."""
    medians, kinds = matrix.median_us, _kinds(matrix.layout)
    touched = np.zeros(medians.size, dtype=bool)
    touched[[cell for one in slow for cell in one.cells]] = True
    usual: dict[LinkClass, float] = {}
    for link in LINK_CLASSES:
        known = (kinds == link) & np.isfinite(medians)
        free = known & ~touched.reshape(medians.shape)
        if known.any():
            usual[link] = float(np.median(medians[free if free.any() else known]))
    return usual


def _kinds(layout: Layout) -> Any:
    """Return the class of link of each cell, senders x receivers."""
    nodes = np.arange(layout.ranks) // layout.ranks_per_node
    return np.where(nodes[:, None] == nodes[None, :], "intra", "inter")


def _spread(usual: Mapping[LinkClass, float], layout: Layout) -> Any:
    """Return for each cell what its class takes."""
    kinds = _kinds(layout)
    return sum(np.where(kinds == link, us, 0.0) for link, us in usual.items())


def _medium(time_us: float, size_bytes: int) -> str:
    """Return `8.52 ms (0.0615 GB/s)`."""
    return f"{words.times(time_us, time_us)} ({gbps(size_bytes, time_us):.3g} GB/s)"


def _stragglers(matrix: Matrix, tests: int) -> list[Straggler] | None:
    """Return who stands out, as `commbench stragglers` finds it; None of more ranks than that is quick for."""
    if matrix.layout.ranks > _JUDGED_RANKS:
        return None
    return Search(matrix.time_us, matrix.layout, tests=tests).run()


def _conclusion(slow: Sequence[Straggler] | None) -> str:
    """Return who is slow, and how much, the slowest first; "" where nobody has looked."""
    if slow is None:
        return ""
    named = [f"{one.name}: {one.ratio:.2f}x the time" for one in sorted(slow, key=lambda one: -one.ratio)]
    return "; ".join(named[:_MOST_NAMED]) if named else "no rank and no link stands out"


def colour_range(values: Any) -> tuple[float, float]:
    """Return the range of the colours."""
    known = values[np.isfinite(values)]
    low, high = float(known.min()), float(known.max())
    middle = (low * high) ** 0.5
    return min(low, middle / _LEAST_RANGE**0.5), max(high, middle * _LEAST_RANGE**0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers, enough of them to read colours by."""
    subs = (1.0, 2.0, 5.0) if high > 20 * low else _FINE_TICKS
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [sub * 10.0**decade for decade in decades for sub in subs if low <= sub * 10.0**decade <= high]


def _numbers(axes: Axes, values: Any, norm: LogNorm) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, short(value), ha="center", va="center", fontsize=7,
                      color="#ffffff" if norm(value) > 0.45 else "#000000")  # fmt: skip


def short(value: float) -> str:
    """Return a ratio in three digits at the most: `0.98`, `1.5`, `20`."""
    return f"{value:.2f}" if value < 1.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _ranks(axes: Axes, matrix: Matrix) -> None:
    layout = matrix.layout
    n, m = layout.ranks, layout.ranks_per_node
    each = n <= _MOST_RANKS
    at = list(range(n)) if each else [node * m + (m - 1) / 2 for node in range(layout.nodes)]
    names = [str(rank) for rank in range(n)] if each else [str(node) for node in range(layout.nodes)]
    if len(at) > _MOST_RANKS:
        step = -(-len(at) // _MOST_RANKS)
        at, names = at[::step], names[::step]
    axes.set_xticks(at, names, fontsize=8.5)
    axes.set_yticks(at, names, fontsize=8.5)
    axes.tick_params(length=0, top=False, labeltop=False)
    noun = "rank" if each else "node"
    axes.set_xlabel(f"receiving {noun}", labelpad=18 if each and layout.nodes > 1 else 4)
    axes.set_ylabel(f"sending {noun}", labelpad=26 if each and layout.nodes > 1 else 4)
    for edge in range(m, n, m) if layout.nodes > 1 and m > 1 else ():
        axes.axhline(edge - 0.5, color="#ffffff", linewidth=2.2)
        axes.axvline(edge - 0.5, color="#ffffff", linewidth=2.2)
    if each and layout.nodes > 1 and m > 1:
        style: dict[str, Any] = {"fontsize": 8, "color": "#555555", "ha": "center", "va": "center"}
        style |= {"textcoords": "offset points", "annotation_clip": False}
        for node in range(layout.nodes):
            middle = node * m + (m - 1) / 2
            axes.annotate(f"node {node}", (middle, n - 0.5), (0, -22), **style)
            axes.annotate(f"node {node}", (-0.5, middle), (-26, 0), rotation=90, **style)
    for side in axes.spines.values():
        side.set_visible(False)


def _complete(matrix: Matrix) -> bool:
    medians = matrix.median_us
    return bool(np.isfinite(medians).sum() == medians.size - len(medians))


def rows_without(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what the other plots draw: a curve for each round would be hundreds of figures that show nothing."""
    return rows[rows["collective"] != "pairs"]
