"""What all plots share: colours, size axes, the caption that says where the numbers are from."""

from __future__ import annotations

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
_MOST_TICKS = 12
UPRIGHT_TICKS = 6  # more labels than this are tilted


def size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Logarithmic, with ticks at the sizes that were measured: 1 KiB, 4 KiB, 1 MiB."""
    axes.set_xscale("log", base=2)
    every = -(-len(sizes) // _MOST_TICKS)
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)[::every]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_size(value)))
    axes.tick_params(axis="x", labelrotation=35 if len(sizes) > UPRIGHT_TICKS else 0)
    axes.set_xlabel("size (bytes of one rank's buffer)")


def value_axis(axes: Axes, label: str) -> None:
    """Logarithmic, with plain numbers: 0.5, 20, 1000."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(label)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def caption(figure: Figure, meta: Mapping[str, Any], note: str) -> None:
    """Below the plot: what the bars mean, then machine and date."""
    text = f"{note}\n{meta['machine_text']} | {meta['started'][:10]} | commbench {meta['commbench_version']}"
    figure.text(0.01, 0.01, text, fontsize=7.5, color="#555555", va="bottom", ha="left")
