"""Bandwidth and time against size: a line per algorithm, bars for the interval, the bound where it is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from commbench.output import describe_layout
from commbench.plots.style import COLOURS, MARKERS, STYLES, caption, size_axis, tilted, value_axis
from commbench.records import digest

if TYPE_CHECKING:
    import pandas as pd

# One figure for each combination of these.
FIGURE_KEYS = [
    *("what", "transport", "nodes", "ranks", "groups", "group_size", "overlap", "fabric"),
    *("dtype", "mode", "buffers", "cache", "env"),
]


def curves(frame: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures by file name; none for rows without numbers. `frame` has the columns of `Row`, `run` and `label`."""
    ok = frame[frame["status"] == "ok"]
    figures = {}
    for key, rows in ok.groupby(FIGURE_KEYS, sort=False):
        setting: dict[str, Any] = {name: value for name, value in zip(FIGURE_KEYS, key, strict=True)}  # noqa: C416
        layout = f"{setting['nodes']}x{setting['ranks'] // setting['nodes']}"
        words = [setting["what"], setting["transport"], layout]
        words += [setting["groups"]] if setting["groups"] != "world" else []
        words += [setting["overlap"]] if setting["overlap"] != "none" else []
        words += [setting[name] for name in ("dtype", "mode") if setting[name]]
        words += [setting["cache"]] if setting["cache"] != "warm" else []
        words += [setting["buffers"]] if setting["buffers"] != "plain" else []
        words += [setting["env"]] if setting["env"] else []
        figures[_file_name("-".join(words))] = _figure(rows, setting, meta)
    return figures


def _file_name(text: str) -> str:
    """Safe and short; a hash keeps names apart that would have become the same."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return name if name == text and len(name) <= 120 else f"{name[:100]}-{digest(text)[:6]}"


def _figure(rows: pd.DataFrame, setting: Mapping[str, Any], meta: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(10.5, 4.9))
    bandwidth, latency = figure.subplots(1, 2)
    sizes = sorted(int(size) for size in rows["size_bytes"].unique())
    foreign = rows["case_id"].isna()  # of other programs: last, and grey
    # The same colour for the same algorithm, whatever finished first.
    lines = [*rows[~foreign].groupby("label", sort=True), *rows[foreign].groupby("label", sort=True)]
    for index, (label, unsorted) in enumerate(lines):
        line = unsorted.sort_values("size_bytes")
        # Side by side, so that no interval hides behind another.
        at = line["size_bytes"] * 2 ** (0.12 * (index - (len(lines) - 1) / 2))
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 4.5,
            "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
            "linewidth": 1.4,
            "capsize": 2.5,
            "elinewidth": 1.0,
            "label": label,
        }
        if line["case_id"].isna().all():
            style |= {"color": "#777777", "linestyle": "--"}
        time, low, high = line["time_us"], line["time_us_low"], line["time_us_high"]
        latency.errorbar(at, time, yerr=[(time - low).clip(lower=0), (high - time).clip(lower=0)], **style)
        # The interval is one of times; bandwidth is computed from its ends.
        busbw = line["busbw_gbps"]
        bars = [(busbw - busbw * time / high).clip(lower=0), (busbw * time / low - busbw).clip(lower=0)]
        bandwidth.errorbar(at, busbw, yerr=bars, **style)
    bound = rows.dropna(subset=["bound_gbps"]).drop_duplicates("size_bytes").sort_values("size_bytes")
    if len(bound):
        dashed: dict[str, Any] = {"color": "#444444", "linestyle": "--", "linewidth": 1.1, "label": "bound"}
        dashed |= {"marker": "_"} if len(bound) == 1 else {}
        bandwidth.plot(bound["size_bytes"], bound["bound_gbps"], **dashed)
        latency.plot(bound["size_bytes"], bound["time_us"] * bound["busbw_gbps"] / bound["bound_gbps"], **dashed)
    for axes in (bandwidth, latency):
        size_axis(axes, sizes, "busiest" if "all_to_allv" in setting["what"] else "one")
    value_axis(bandwidth, "bus bandwidth (GB/s)")
    value_axis(latency, "time (us)")
    bandwidth.set_title("bandwidth: higher is better", fontsize=9.5)
    latency.set_title("time: lower is better", fontsize=9.5)
    handles, labels = latency.get_legend_handles_labels()
    columns = max(1, min(len(labels), 6, 110 // (max(map(len, labels)) + 6)))
    figure.legend(
        handles, labels, loc="upper center", ncols=columns, frameon=False, fontsize=9, bbox_to_anchor=(0.5, 0.945)
    )
    figure.suptitle(_title(setting), fontsize=12, y=0.985)
    launches = int(rows["launches"].max())
    counted = f"{launches} launch{'es' if launches > 1 else ''}"
    known = set(rows["interval_of"].dropna())
    spread = f"95 % interval over {counted}" if known == {"launches"} else f"95 % interval of samples in {counted} only"
    note = (
        f"points: median of the slowest rank's time; bars: {spread if known else 'none, as there are too few samples'}"
    )
    if foreign.any():
        note += "; grey: as its source gives it"
    note += "" if len(bound) else "; no bound: no link rate is known"
    cpus = len((meta.get("machine") or {}).get("affinity") or [])
    if setting["fabric"] != "real" and 0 < cpus < setting["ranks"]:
        note += f"\n{setting['ranks']} ranks share {cpus} CPUs, so times hold waiting for a CPU"
    caption(figure, meta, note)
    legend_rows = -(-len(labels) // columns)
    top, bottom = 0.82 - 0.045 * (legend_rows - 1), 0.26 if tilted(sizes) else 0.205
    figure.subplots_adjust(left=0.085, right=0.985, top=top, bottom=bottom, wspace=0.22)
    return figure


def _title(setting: Mapping[str, Any]) -> str:
    layout = describe_layout(setting["nodes"], setting["ranks"], setting["fabric"])
    words = [f"{setting['what']} over {setting['transport']}", layout, setting["dtype"], setting["mode"]]
    words += [f"groups of {setting['group_size']} ({setting['groups']})"] if setting["groups"] != "world" else []
    words += [f"beside a {setting['overlap']}"] if setting["overlap"] != "none" else []
    words += ["cold cache"] if setting["cache"] == "cold" else []
    words += [setting["env"]] if setting["env"] else []
    return ", ".join(words)
