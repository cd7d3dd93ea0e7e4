"""Maps of who is fastest where, matrices of pairs of ranks, and what is sent over which links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, to_hex

from commbench.analysis import pair_matrices
from commbench.analysis.pair_matrices import Matrix
from commbench.analysis.stragglers import suspects
from commbench.plots import pairs, style
from commbench.plots.crossover import HATCHES, ink, maps, ratio_text, shade
from commbench.plots.settings import complete, join, nodes_text, title_words
from commbench.plots.traffic import TRAFFIC_KEYS, USUAL, conclusion, largest_rows
from commbench.records import Status, network_note
from commbench.report import charts
from commbench.report.page import (
    LegendEntry,
    PageChart,
)
from commbench.run_folder import RunFolder
from commbench.units import format_size

if TYPE_CHECKING:
    import pandas as pd
from commbench.report.curve_charts import known, sentence

_MOST_FIGURES = 24
_MOST_MATRICES, _MOST_NUMBERS, _MOST_RANKS = 6, 16, 64
_BOUND_COLOUR, _NOTHING = "#7d8590", "#d0d3d8"
_INTER, _INTRA = "#56658F", "#A9B9D6"


def crossover_charts(frame: pd.DataFrame) -> list[PageChart]:
    """Return the maps of sizes and set-ups."""
    made = []
    for one in list(maps(frame).values())[:_MOST_FIGURES]:
        columns = [format_size(size) for size in one.sizes.values()]
        names = [" ".join(name.split("\n")) for name in one.names]
        rows = _apart(names)
        cells, winners = [], {}
        for (row, column), cell in one.cells.items():
            proven = cell.verdict not in HATCHES
            fill = to_hex(shade(cell.algorithm, cell.ratio)) if proven else _NOTHING
            text = [*cell.label.split(" ", 1), ratio_text(cell)] if proven else [ratio_text(cell)]
            tip = f"{cell.label} {ratio_text(cell)}".strip() + ("" if proven else f" ({cell.verdict})")
            cells.append(
                {
                    "row": rows[row],
                    "column": columns[column],
                    "text": text,
                    "tip": tip,
                    "fill": fill,
                    "ink": to_hex(ink(fill)),
                }
            )
            if proven:
                winners[cell.algorithm] = style.algorithm_colour(cell.algorithm)
        legend = [LegendEntry(label=name, colour=colour, area=True) for name, colour in sorted(winners.items())]
        if any(cell.verdict in HATCHES for cell in one.cells.values()):
            legend.append(LegendEntry(label="= no difference, ? nobody can tell", colour=_NOTHING, area=True))
        spec = charts.cells(
            cells, columns=columns, rows=rows, x_title="size", y_title="", colour=charts.as_given(), step=58
        )
        found, _, of = one.title.rpartition(" (")
        says = sentence(one.note).replace("Hatched", "Grey")
        made.append(PageChart(title=found, subtitle=of.removesuffix(")"), panels=[spec], legend=legend, says=says))
    return made


def _apart(names: Sequence[str]) -> list[str]:
    """Return names that differ: rows of one name would be one row."""
    seen: Counter[str] = Counter()
    made = []
    for name in names:
        seen[name] += 1
        made.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return made


def pair_charts(matrices: Sequence[Matrix]) -> list[PageChart]:
    """Return the matrices of pairs, the largest sizes first."""
    tests = sum(suspects.count(matrix.layout) for matrix in matrices)
    made = []
    for matrix in sorted(matrices, key=lambda one: -one.size_bytes)[:_MOST_MATRICES]:
        n, m = matrix.layout.ranks, matrix.layout.ranks_per_node
        drawn = pairs.map_of(matrix, tests)
        low, high = pairs.colour_range(drawn.values)
        norm, medians = LogNorm(low, high), matrix.median_us
        numbered = n <= _MOST_NUMBERS
        names = [f"{rank}" if m == n else f"{rank // m}.{rank % m}" for rank in range(n)]
        values = []
        for src, dst in np.argwhere(np.isfinite(drawn.values)).tolist():
            ratio = float(drawn.values[src, dst])
            fill = to_hex(colormaps["viridis_r"](norm(ratio)))
            tip = f"{ratio:.3g}x its usual time: {medians[src, dst]:.4g} us"
            values.append(
                {
                    "row": names[src],
                    "column": names[dst],
                    "fill": fill,
                    "tip": tip,
                    "text": pairs.short(ratio) if numbered else "",
                    "ink": to_hex(ink(fill)),
                }
            )
        if n > _MOST_RANKS:
            values = [{key: value for key, value in one.items() if key not in ("text", "ink")} for one in values]
        spec = charts.cells(
            values,
            columns=names,
            rows=names,
            x_title="to" if m == n else "to node.rank",
            y_title="from" if m == n else "from node.rank",
            colour=charts.as_given(),
            step=34 if numbered else max(4, 640 // n),
            square=True,
        )
        found, _, of = drawn.title.rpartition(" (")
        marks = [(f"{value:.2g}x", to_hex(colormaps["viridis_r"](norm(value)))) for value in _steps(low, high)]
        says = sentence(f"{pairs.READ} {drawn.note}")
        says += f" The {text}." if (text := network_note(matrix.row.fabric)) else ""
        made.append(
            PageChart(
                title=found or of,
                subtitle=of.removesuffix(")") if found else "",
                panels=[spec],
                says=says,
                legend=[LegendEntry(label=label, colour=colour, area=True) for label, colour in marks],
            )
        )
    return made


def _steps(low: float, high: float) -> list[float]:
    return [float(value) for value in np.geomspace(low, high, 5)]


def traffic_charts(frame: pd.DataFrame) -> list[PageChart]:
    """Return the bytes of each algorithm, at its largest size."""
    ours = complete(frame[(frame["status"] == Status.OK) & frame["case_id"].notna() & (frame["nodes"] > 1)])
    if "wire_bytes" not in ours:
        ours = ours.assign(wire_bytes=float("nan"))
    legend = [
        LegendEntry(label="between nodes", colour=_INTER, area=True),
        LegendEntry(label="inside nodes", colour=_INTRA, area=True),
    ]
    made: list[PageChart] = []
    for _, rows in list(ours.groupby(TRAFFIC_KEYS, sort=False))[:_MOST_FIGURES]:
        by_label = largest_rows(rows)
        bars = {label: row for label, row in by_label.items() if row is not None}
        if not bars:
            continue
        setting: dict[Any, Any] = {**USUAL, **rows.iloc[0][TRAFFIC_KEYS].to_dict()}
        parts = [
            {
                "bar": label,
                "series": name,
                "x": row[column] / (row["ranks"] * row["size_bytes"]),
                "text": f"{format_size(row[column])} a call at {format_size(row['size_bytes'])}",
            }
            for label, row in bars.items()
            for name, column in (("between nodes", "inter_bytes"), ("inside nodes", "intra_bytes"))
        ]
        heading = join(
            f"{setting['what']} over {setting['transport']}", nodes_text(setting), *title_words(setting).values()
        )
        wire = [f"{label} {format_size(row['wire_bytes'])}" for label, row in bars.items() if known(row["wire_bytes"])]
        says = "Shorter is less to send. Payload by the algorithm's own steps, own blocks excluded."
        says += f" Counted on the links between nodes, headers included: {', '.join(wire)}." if wire else ""
        unknown = [label for label, row in by_label.items() if row is None]
        says += f" Not shown, as a library chooses the way: {', '.join(unknown)}." if unknown else ""
        spec = charts.bars(parts, legend, "bytes of a call, all ranks / (ranks x size)", order=list(bars))
        made.append(PageChart(title=conclusion(bars), subtitle=heading, panels=[spec], legend=legend, says=says))
    return made


def matrices_of(folder: RunFolder) -> list[Matrix]:
    """Return the pairs of one run."""
    return pair_matrices.of_runs([folder])
