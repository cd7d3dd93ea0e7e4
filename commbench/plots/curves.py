"""Bandwidth and time against size: a line per algorithm, bars for the interval, the bound where it is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from commbench.plots.style import COLOURS, MARKERS, caption, size_axis, value_axis

if TYPE_CHECKING:
    import pandas as pd

# One figure for each combination of these.
_FIGURE_KEYS = ["collective", "transport", "nodes", "ranks", "dtype", "mode", "buffers", "cache", "env"]


def curves(frame: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures by file name; none for rows without numbers. `frame` has the columns of `Row`, `run` and `label`."""
    ok = frame[frame["status"] == "ok"]
    figures = {}
    for key, rows in ok.groupby(_FIGURE_KEYS, sort=False):
        setting = dict(zip(_FIGURE_KEYS, key, strict=True))
        words = [setting["collective"], setting["transport"], f"{setting['nodes']}x{setting['ranks'] // setting['nodes']}"]
        words += [setting[name] for name in ("dtype", "mode") if setting[name]]
        words += [setting["cache"]] if setting["cache"] != "warm" else []
        words += [setting["buffers"]] if setting["buffers"] != "plain" else []
        words += [setting["env"]] if setting["env"] else []
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words))
        figures[name] = _figure(rows, setting, meta)
    return figures


def _figure(rows: pd.DataFrame, setting: Mapping[str, Any], meta: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(10.5, 4.9))
    bandwidth, latency = figure.subplots(1, 2)
    sizes = sorted(int(size) for size in rows["size_bytes"].unique())
    for index, (label, line) in enumerate(rows.groupby("label", sort=False)):
        line = line.sort_values("size_bytes")
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 4.5,
            "linewidth": 1.4,
            "capsize": 2.5,
            "elinewidth": 1.0,
            "label": label,
        }
        time, low, high = line["time_us"], line["time_us_low"], line["time_us_high"]
        latency.errorbar(line["size_bytes"], time, yerr=[time - low, high - time], **style)
        # The interval is one of times; bandwidth is computed from its ends.
        busbw = line["busbw_gbps"]
        bars = [busbw - busbw * time / high, busbw * time / low - busbw]
        bandwidth.errorbar(line["size_bytes"], busbw, yerr=bars, **style)
    bound = rows.dropna(subset=["bound_gbps"]).drop_duplicates("size_bytes").sort_values("size_bytes")
    if len(bound):
        dashed: dict[str, Any] = {"color": "#444444", "linestyle": "--", "linewidth": 1.1, "label": "bound"}
        bandwidth.plot(bound["size_bytes"], bound["bound_gbps"], **dashed)
        latency.plot(bound["size_bytes"], bound["time_us"] * bound["busbw_gbps"] / bound["bound_gbps"], **dashed)
    for axes in (bandwidth, latency):
        size_axis(axes, sizes)
    value_axis(bandwidth, "bus bandwidth (GB/s)")
    value_axis(latency, "time (us)")
    bandwidth.set_title("bandwidth: higher is better", fontsize=9.5)
    latency.set_title("time: lower is better", fontsize=9.5)
    handles, labels = latency.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=min(len(labels), 6), frameon=False, fontsize=9, bbox_to_anchor=(0.5, 0.945))  # fmt: skip
    figure.suptitle(_title(setting), fontsize=12, y=0.985)
    launches = int(rows["launches"].max())
    of = "launches" if (rows["interval_of"] == "launches").all() else "samples"
    spread = f"over {launches} launches" if of == "launches" else f"of samples within {launches} launches only"
    note = f"points: median of the slowest rank's time; bars: 95 % interval {spread}"
    caption(figure, meta, note + ("" if len(bound) else "; no bound: no link rate is known"))
    figure.subplots_adjust(left=0.075, right=0.985, top=0.82, bottom=0.255, wspace=0.2)
    return figure


def _title(setting: Mapping[str, Any]) -> str:
    per_node = setting["ranks"] // setting["nodes"]
    title = f"{setting['collective']} over {setting['transport']}, {setting['nodes']} nodes x {per_node} ranks, "
    title += f"{setting['dtype']}, {setting['mode']}"
    title += ", cold cache" if setting["cache"] == "cold" else ""
    return title + (f", {setting['env']}" if setting["env"] else "")
