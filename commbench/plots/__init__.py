"""Plots: functions from rows to figures. A new one is one file and one line in `TABLE`. Nothing here knows torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commbench.files import write_atomically
from commbench.plots.crossover import crossover
from commbench.plots.curves import curves
from commbench.plots.pairs import heat_maps, rows_without
from commbench.plots.style import picture
from commbench.plots.traffic import traffic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# name -> function of (rows, metadata) that gives figures by file name.
TABLE: dict[str, Callable[[pd.DataFrame, Mapping[str, Any]], dict[str, Figure]]] = {
    "curves": curves,
    "crossover": crossover,
    "traffic": traffic,
    "pairs": heat_maps,
}


def draw(frame: pd.DataFrame, meta: Mapping[str, Any], out: Path, *, prefix: str = "") -> list[Path]:
    """Draw every plot that the rows allow, as PNG and SVG; returns the PNG files.

    `meta` is what run.json says, and under `pairs` the matrices of the runs.
    """
    frame = rows_without(frame)
    return [path for function in TABLE.values() for path in save(function(frame, meta), out, prefix)]


def save(figures: Mapping[str, Figure], out: Path, prefix: str = "") -> list[Path]:
    """Write figures, by file name, as PNG and SVG. Return the PNG files."""
    written = []
    for name, figure in figures.items():
        out.mkdir(parents=True, exist_ok=True)
        for suffix in ("svg", "png"):
            path = out / f"{prefix}{name}.{suffix}"
            write_atomically(path, picture(figure, suffix))
        written.append(path)
    return written
