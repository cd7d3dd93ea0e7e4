"""The table of all rows, with the columns that say something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commbench.find import meanings
from commbench.plots.settings import algorithm_label
from commbench.report.page import (
    PageColumn,
    PageTable,
    rounded,
)
from commbench.units import format_size

if TYPE_CHECKING:
    import pandas as pd
from commbench.report.curve_charts import known

_COLUMNS = {
    "run": "run",
    "what": "what",
    "label": "algorithm",
    "size_bytes": "size",
    "transport": "transport",
    "layout": "nodes x ranks",
    "dtype": "dtype",
    "mode": "mode",
    "buffers": "buffers",
    "env": "env",
    "binding": "binding",
    "time_us": "time_us",
    "time_us_low": "low",
    "time_us_high": "high",
    "algbw_gbps": "algbw",
    "busbw_gbps": "busbw",
    "bound_fraction": "of bound",
    "speedup": "speedup",
    "speedup_low": "x_low",
    "speedup_high": "x_high",
    "launches": "launches",
    "samples": "samples",
    "status": "status",
}
_ALWAYS = {"label", "size_bytes", "time_us", "time_us_low", "time_us_high"}  # the rest, where its values differ
_NUMBERS = {
    "time_us",
    "time_us_low",
    "time_us_high",
    "algbw_gbps",
    "busbw_gbps",
    "bound_fraction",
    "speedup",
    "speedup_low",
    "speedup_high",
}


def table(frame: pd.DataFrame) -> PageTable:
    """Return all rows with the columns that say something."""
    frame = frame.sort_values(["what", "transport", "size_bytes", "label"], kind="stable")
    nodes, ranks = frame["nodes"].astype(int), frame["ranks"].astype(int)
    frame = frame.assign(layout=[f"{n}x{r // n}" for n, r in zip(nodes, ranks, strict=True)])
    if frame["label"].notna().all() and "params" in frame:
        labels = [
            algorithm_label(a, p) if known(c) else label
            for a, p, c, label in zip(
                frame["algorithm"], frame["params"], frame["case_id"], frame["label"], strict=True
            )
        ]
        frame = frame.assign(label=labels)
    columns = []
    explained = {one.name: one.text for one in meanings.TABLE}
    for name, heading in _COLUMNS.items():
        if name not in frame or (name == "algbw_gbps" and frame["busbw_gbps"].notna().any()):
            continue
        values = [value if known(value) else None for value in frame[name].tolist()]
        kept = {value for value in values if value not in (None, "")}
        if not kept or (name not in _ALWAYS and name not in _NUMBERS and len(set(values)) == 1):
            continue
        if name == "size_bytes":
            sizes = {format_size(int(size)): float(size) for size in kept}
            values, keys = [format_size(int(size or 0)) for size in values], sizes
        else:
            keys = None
            values = [rounded(value) if name in _NUMBERS else value for value in values]
            values = [
                value if value is None or name in _NUMBERS else str(value) if not isinstance(value, int) else value
                for value in values
            ]
        columns.append(PageColumn(name=heading, values=values, keys=keys, help=explained.get(name, "")))
    return PageTable(columns=columns)
