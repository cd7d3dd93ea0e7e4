"""The heat map of all pairs of ranks: who sends down, who receives across, nodes set apart; dark is slow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from commbench.analysis.pair_matrices import Matrix
from commbench.output.parquet import frame
from commbench.plots.settings import complete, file_name, file_words, join, layout_text, nodes_text, title_words
from commbench.plots.style import caption, title
from commbench.records import network_note
from commbench.units import format_size, gbps

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MOST_NUMBERS = 16  # ranks, with a number in each cell
_MOST_RANKS = 32  # named each; of more only nodes are
_RATE_FROM = 64 * 1024  # bytes: below it is the time that matters
_LEAST_RANGE = 2.0  # of the colours: noise shall not look like a finding
_FINE_TICKS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
_NOTHING = "#e8e8e8"
_INCHES = {"left": 1.05, "right": 1.35, "top": 0.8, "bottom": 1.15}


def heat_maps(rows: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw figures, by file name, one for each matrix in `meta["pairs"]`; `rows` are not looked at."""
    figures = {}
    for matrix in meta.get("pairs", ()):
        setting: dict[Any, Any] = complete(frame([matrix.row], "")).iloc[0].to_dict()
        words = ["pairs", *matrix.row.what.split()[1:], setting["transport"], layout_text(setting)]
        words += [*file_words(setting).values(), format_size(matrix.size_bytes)]
        name = file_name([word.replace("=", "-") for word in words])
        figures[name if name not in figures else f"{name}-{matrix.key[:6]}"] = _figure(matrix, setting, meta)
    return figures


def _figure(matrix: Matrix, setting: Mapping[str, Any], meta: Mapping[str, Any]) -> Figure:
    n = matrix.layout.ranks
    by_rate = matrix.size_bytes >= _RATE_FROM
    medians = matrix.median_us
    values = gbps(matrix.size_bytes, 1.0) / medians if by_rate else medians
    side = max(3.6, 0.46 * n) if n <= _MOST_NUMBERS else 7.4
    width, height = side + _INCHES["left"] + _INCHES["right"], side + _INCHES["top"] + _INCHES["bottom"]
    figure = Figure(figsize=(max(width, 6.6), height))
    width = max(width, 6.6)
    left, bottom = _INCHES["left"] + (width - side - _INCHES["left"] - _INCHES["right"]) / 2, _INCHES["bottom"]
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    # Dark is slow: small rates, long times.
    colours = colormaps["viridis" if by_rate else "viridis_r"].with_extremes(bad=_NOTHING)
    low, high = _range(values)
    norm = LogNorm(low, high)
    axes.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, interpolation="nearest")
    if n <= _MOST_NUMBERS:
        _numbers(axes, values, norm, by_rate)
    _ranks(axes, matrix)
    bar_axes = figure.add_axes(((left + side + 0.22) / width, bottom / height, 0.2 / width, side / height))
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=colours), cax=bar_axes)
    bar.ax.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.9g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize=8.5)
    bar.set_label("GB/s (dark is slow)" if by_rate else "time, us (dark is slow)", fontsize=9)
    what = " ".join(["pairs", *matrix.row.what.split()[1:]])
    text = join(f"{what} over {setting['transport']}", format_size(matrix.size_bytes), nodes_text(setting))
    title(figure, join(text, *title_words(setting).values()), 1 - 0.12 / height)
    counted = f"{matrix.launches} launch{'es' if matrix.launches > 1 else ''}"
    note = f"each cell: one message, median of {counted}"
    note += "; grey: not measured" if not _complete(matrix) else ""
    note += "; who stands out: commbench stragglers RUN"
    caption(figure, meta, "\n".join(filter(None, [note, network_note(setting["fabric"])])))
    return figure


def _range(values: Any) -> tuple[float, float]:
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


def _numbers(axes: Axes, values: Any, norm: LogNorm, by_rate: bool) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = (norm(value) < 0.55) if by_rate else (norm(value) > 0.45)
            axes.text(column, row, _short(value), ha="center", va="center", fontsize=7,
                      color="#ffffff" if dark else "#000000")  # fmt: skip


def _short(value: float) -> str:
    """Return a value in three digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    text = f"{value / 1000:.3g}k" if value >= 10_000 else f"{value:.{digits}f}"
    return text.removeprefix("0") if value < 1 else text


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
    axes.set_ylabel(f"sending {noun}", labelpad=22 if each and layout.nodes > 1 else 4)
    for edge in range(m, n, m) if layout.nodes > 1 and m > 1 else ():
        axes.axhline(edge - 0.5, color="#ffffff", linewidth=2.2)
        axes.axvline(edge - 0.5, color="#ffffff", linewidth=2.2)
    if each and layout.nodes > 1 and m > 1:
        style: dict[str, Any] = {"fontsize": 8, "color": "#555555", "ha": "center", "va": "center"}
        style |= {"textcoords": "offset points", "annotation_clip": False}
        for node in range(layout.nodes):
            middle = node * m + (m - 1) / 2
            axes.annotate(f"node {node}", (middle, n - 0.5), (0, -22), **style)
            axes.annotate(f"node {node}", (-0.5, middle), (-24, 0), rotation=90, **style)
    for side in axes.spines.values():
        side.set_visible(False)


def _complete(matrix: Matrix) -> bool:
    medians = matrix.median_us
    return bool(np.isfinite(medians).sum() == medians.size - len(medians))


def rows_without(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what the other plots draw: a curve for each round would be hundreds of figures that show nothing."""
    return rows[rows["collective"] != "pairs"]
