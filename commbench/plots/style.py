"""What all plots share: colours, size axes, the caption that says where the numbers are from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from commbench.units import format_size

# Okabe and Ito's palette: told apart by colour-blind readers; markers tell the lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", ":", "-.")  # the next eight lines
_WIDEST_LABEL = 1 / 6  # of the axis; labels closer than that are tilted
_TILTED_LABEL = 1 / 14  # and closer than that left out


def tilted(sizes: Sequence[int]) -> bool:
    """Whether the labels of a size axis must be tilted to fit."""
    return len(_apart(sizes, _WIDEST_LABEL)) < len(sizes)


def _apart(sizes: Sequence[int], least: float) -> list[int]:
    """Sizes that are at least this part of a logarithmic axis apart, from the smallest up."""
    gap = least * math.log2(max(sizes) / min(sizes))
    kept: list[int] = []
    for size in sorted(sizes):
        if not kept or math.log2(size / kept[-1]) >= gap * 0.999:
            kept.append(size)
    return kept


def size_axis(axes: Axes, sizes: Sequence[int], whose: str = "one") -> None:
    """Logarithmic, with ticks at the sizes that were measured: 1 KiB, 4 KiB, 1 MiB."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_apart(sizes, _TILTED_LABEL)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_size(value)))
    axes.tick_params(axis="x", labelrotation=35 if tilted(sizes) else 0)
    axes.set_xlabel(f"size (bytes of {whose} rank's buffer)" if whose == "one" else f"size (bytes of the {whose} rank)")


def value_axis(axes: Axes, label: str) -> None:
    """Logarithmic, with plain numbers: 0.5, 20, 1000."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high > 20 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)  # enough labels to read it by
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(label)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def caption(figure: Figure, meta: Mapping[str, Any], note: str) -> None:
    """Below the plot: what the bars mean, then machine and date."""
    text = f"{note}\n{meta['machine_text']} | {meta['started'][:10]} | commbench {meta['commbench_version']}"
    figure.text(0.01, 0.01, text, fontsize=7.5, color="#555555", va="bottom", ha="left")
