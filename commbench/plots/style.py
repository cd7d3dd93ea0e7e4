"""What all plots share: colours, size axes, the caption that says where the numbers are from."""

from __future__ import annotations

import io
import math
import textwrap
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from commbench import algorithms
from commbench.units import format_size

# Okabe and Ito's palette: colour-blind readers can separate them; in grey, markers do.
# Each algorithm has its own in every figure; two may share one if no collective has both.
_COLOURS = {
    "direct": "#0072B2",
    "duplicated": "#0072B2",
    "2d_intra_first": "#D55E00",
    "2d": "#D55E00",
    "drop_gather": "#D55E00",
    "pairwise": "#009E73",
    "bruck": "#CC79A7",
    "2d_inter_first": "#56B4E9",
    "2d_pipelined": "#E69F00",
    "drop_gather_pipelined": "#E69F00",
    "per_choice": "#0072B2",
    "per_rank": "#009E73",
    "per_node": "#D55E00",
    "per_node_pipelined": "#E69F00",
    "all_gather": "#CC79A7",
    "slots": "#56B4E9",
}
_FURTHER = ("#7A5195", "#8C6D31", "#C2B000", "#17736F", "#A6323A")  # of others, as their table has them
FOREIGN = "#777777"  # results of other programs
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))  # of lines of one colour
# Axes of bandwidth: what nccl-tests calls busbw and algbw.
BUS = "bandwidth of a rank's link, GB/s (busbw)"
ALGORITHM = "bandwidth that the caller sees, GB/s (algbw)"
MOST_SIZES = 32  # of a line: markers and intervals that can be told apart
_WIDEST_LABEL = 1 / 6  # of the axis; labels closer than that are tilted
_TILTED_LABEL = 1 / 14  # and closer than that left out


def picture(figure: Figure, kind: str) -> bytes:
    """Return a figure as a `png` or `svg` file, whose bytes depend on nothing but the figure."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def algorithm_colour(name: str) -> str:
    """Return an algorithm's colour, the same whatever else is drawn."""
    if name in _COLOURS:
        return _COLOURS[name]
    others = [other for other in dict.fromkeys(name for _, name in algorithms.TABLE) if other not in _COLOURS]
    place = others.index(name) if name in others else zlib.crc32(name.encode())
    return _FURTHER[place % len(_FURTHER)]


def tilted(sizes: Sequence[int]) -> bool:
    """Return whether the labels of a size axis must be tilted to fit."""
    return len(_apart(sizes, _WIDEST_LABEL)) < len(sizes)


def _apart(sizes: Collection[int], least: float) -> list[int]:
    """Return sizes that are at least this part of a logarithmic axis apart, from the smallest up."""
    gap = least * math.log2(max(sizes) / min(sizes))
    kept: list[int] = []
    for size in sorted(sizes):
        if not kept or math.log2(size / kept[-1]) >= gap * 0.999:
            kept.append(size)
    return kept


def thinned(sizes: Collection[int], most: int = MOST_SIZES) -> list[int]:
    """Return the sizes that there is room for: all of them, or `most`, evenly apart on a logarithmic axis."""
    if len(sizes) <= most:
        return sorted(sizes)
    return sorted({*_apart(sizes, 1 / (most - 1))[: most - 1], max(sizes)})


def caps(line: int, lines: int) -> float:
    """Return the width of the ends of a line's intervals, in points: wider behind, so that one does not hide another.

    Points stay at their size: a shifted one would be read at a size that nobody measured.
    """
    return 2.0 + 1.1 * min(lines - 1 - line, 6)


def size_axis(axes: Axes, sizes: Sequence[int], whose: str = "one") -> None:
    """Make a logarithmic axis, with ticks at the sizes that were measured: 1 KiB, 4 KiB, 1 MiB."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_apart(sizes, _TILTED_LABEL)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_size(value)))
    axes.tick_params(axis="x", labelrotation=35 if tilted(sizes) else 0)
    axes.set_xlabel(f"size (bytes of {whose} rank's buffer)" if whose == "one" else f"size (bytes of the {whose} rank)")


def ratio_axis(axes: Axes, label: str) -> None:
    """Make an axis of ratios that are already drawn, logarithmic where there is room for its ticks."""
    bottom, top = axes.get_ylim()
    if not (bottom > 0 and top < 2 * bottom):
        value_axis(axes, label)
        return
    axes.set_ylabel(label)
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def value_axis(axes: Axes, label: str) -> None:
    """Make a logarithmic axis with plain numbers: 0.5, 20, 1000."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (
        (1.0,) if high > 1e4 * low else (1.0, 2.0, 5.0) if high > 20 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    )  # enough labels to read it by
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.9g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(label)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def legend_below(axes: Axes, sizes: Sequence[int], letters: int = 110) -> None:
    """Draw the legend below an axis of sizes and its labels; as many columns as `letters` fit side by side."""
    _, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, letters // (max(map(len, labels)) + 8)))
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    down = ScaledTranslation(0, -0.94 if tilted(sizes) else -0.5, figure.dpi_scale_trans)  # inches
    axes.legend(frameon=False, fontsize=8, ncols=columns, loc="upper center", borderaxespad=0,
                bbox_to_anchor=(0.5, 0), bbox_transform=axes.transAxes + down)  # fmt: skip


def title(figure: Figure, text: str, y: float) -> float:
    """Write the title at the top; smaller where it is long, and in the end on several lines.

    Return the inches that its lines after the first take: what is below has to make room.
    """
    fits = figure.get_figwidth() / (0.57 / 72) * 0.98  # characters x points
    size = min(12.0, max(9.0, fits / len(text)))
    lines = textwrap.wrap(text, int(fits / size))
    figure.suptitle("\n".join(lines), fontsize=size, y=y, linespacing=1.1)
    return (len(lines) - 1) * size * 1.2 / 72


def caption(figure: Figure, meta: Mapping[str, Any], note: str) -> None:
    """Write below the plot what the bars mean, then machine and date; before all of it that a run is not finished."""
    note = f"PARTIAL: {meta['partial']}. {note}" if meta.get("partial") else note
    version = f"commbench {meta['commbench_version']}" if meta["commbench_version"] else ""
    made = " | ".join(filter(None, [meta["machine_text"], meta["started"][:10], version]))  # old runs lack some
    text = f"{note}\n{made}"
    figure.text(0.01, 0.01, text, fontsize=7.5, color="#555555", va="bottom", ha="left")
