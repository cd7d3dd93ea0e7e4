"""What each algorithm sends over which links: bytes per call between nodes and inside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commbench.plots.settings import (
    FABRIC_SETTINGS,
    algorithm_label,
    complete,
    file_name,
    file_words,
    join,
    layout_text,
    nodes_text,
    sort_key,
    title_words,
)
from commbench.plots.style import caption, title
from commbench.records import network_note
from commbench.units import format_size

if TYPE_CHECKING:
    import pandas as pd

# One figure for each combination of these: nothing else has to do with it.
TRAFFIC_KEYS = ["what", "transport", "nodes", "ranks", "groups", "group_size", "fabric", *FABRIC_SETTINGS]
USUAL = {"overlap": "none", "dtype": "", "mode": "", "buffers": "plain", "cache": "warm", "env": ""}
_INTER, _INTRA = "#3F4A6B", "#B9C6DD"  # dark: the scarce one; no algorithm has these colours
_BAR = 0.42  # inches


def traffic(frame: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw figures, by file name; none of one node. `frame` has the columns of `Row`, with or without `wire_bytes`."""
    ours = complete(frame[(frame["status"] == "ok") & frame["case_id"].notna() & (frame["nodes"] > 1)])
    if "wire_bytes" not in ours:
        ours = ours.assign(wire_bytes=float("nan"))
    figures = {}
    for _, rows in ours.groupby(TRAFFIC_KEYS, sort=False):
        setting: dict[Any, Any] = {**USUAL, **rows.iloc[0][TRAFFIC_KEYS].to_dict()}
        rows_by_label = largest_rows(rows)
        if any(bar is not None for bar in rows_by_label.values()):
            words = [setting["what"], setting["transport"], layout_text(setting), *file_words(setting).values()]
            figures[file_name(["traffic", *words])] = _figure(rows_by_label, setting, meta)
    return figures


def largest_rows(rows: pd.DataFrame) -> dict[str, dict[Any, Any] | None]:
    """Return by label the row of an algorithm's largest size, metered if one was; None where its steps are unknown."""
    rows_by_label: dict[str, dict[Any, Any] | None] = {}
    ordered = sorted({(str(a), str(p)) for a, p in zip(rows["algorithm"], rows["params"], strict=True)}, key=_sort_key)
    for algorithm, params in ordered:
        of = rows[(rows["algorithm"] == algorithm) & (rows["params"] == params)]
        known = of.dropna(subset=["inter_bytes", "intra_bytes"])
        metered = known.assign(metered=known["wire_bytes"].notna()).sort_values(["size_bytes", "metered"])
        rows_by_label[algorithm_label(algorithm, params)] = metered.iloc[-1].to_dict() if len(metered) else None
    return rows_by_label


def _sort_key(names: tuple[str, str]) -> tuple[int, str, list[float]]:
    return sort_key(*names)


def _figure(
    by_label: Mapping[str, dict[Any, Any] | None], setting: Mapping[str, Any], meta: Mapping[str, Any]
) -> Figure:
    bars = {label: row for label, row in by_label.items() if row is not None}
    largest = max(row["size_bytes"] for row in bars.values())
    width, top, bottom = 10.5, 1.05, 1.08
    height = top + _BAR * len(bars) + bottom
    figure = Figure(figsize=(width, height))
    names = [
        label if row["size_bytes"] == largest else f"{label} ({format_size(row['size_bytes'])})"
        for label, row in bars.items()
    ]
    left = 0.35 + max(map(len, names)) * 9 * 0.6 / 72
    metered = any(_known(row["wire_bytes"]) for row in bars.values())
    right = 3.1 if metered else 2.2  # inches for the bytes in text
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, _BAR * len(bars) / height))
    for index, row in enumerate(bars.values()):
        data = row["ranks"] * row["size_bytes"]
        inter, intra = row["inter_bytes"] / data, row["intra_bytes"] / data
        first = index == 0
        axes.barh(index, inter, 0.62, color=_INTER, label="between nodes" if first else None)
        axes.barh(index, intra, 0.62, left=inter, color=_INTRA, label="inside nodes" if first else None)
        texts = [format_size(row["inter_bytes"]), format_size(row["intra_bytes"])]
        if metered:
            wire = row["wire_bytes"]
            texts.append(format_size(wire) if _known(wire) else "-")
            if _known(wire):
                axes.plot(wire / data, index, marker="D", markersize=6.5, color="#E69F00", markeredgecolor="#ffffff",
                          linestyle="none", clip_on=False, zorder=5)  # fmt: skip
        for column, text in enumerate(texts):
            _beside(figure, width, height, width - right + 0.95 * (column + 1), top + _BAR * (index + 0.5), text)
    for column, text in enumerate(["between", "inside", *(["counted"] if metered else [])]):
        _beside(figure, width, height, width - right + 0.95 * (column + 1), top - 0.1, text, color="#555555")
    _style(axes, names)
    handles, labels = axes.get_legend_handles_labels()
    if metered:
        handles.append(axes.plot([], [], marker="D", color="#E69F00", markeredgecolor="#ffffff", linestyle="none")[0])
        labels.append("counted on the links between nodes")
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False, fontsize=9,
                  bbox_to_anchor=(0.5, 1 - 0.38 / height))  # fmt: skip
    heading = join(
        f"{setting['what']} over {setting['transport']}", nodes_text(setting), *title_words(setting).values()
    )
    title(figure, f"{conclusion(bars)} ({heading})", 1 - 0.16 / height)
    unknown = [label for label, row in by_label.items() if row is None]
    note = _note(largest, unknown, metered=metered)
    caption(figure, meta, "\n".join(filter(None, [note, network_note(setting["fabric"])])))
    return figure


def conclusion(bars: Mapping[str, dict[Any, Any]]) -> str:
    """Return which algorithm sends least between nodes, and how much less than the most."""
    between = {label: row["inter_bytes"] / (row["ranks"] * row["size_bytes"]) for label, row in bars.items()}
    least, most = min(between, key=lambda label: between[label]), max(between.values())
    if most <= 1.01 * between[least]:
        return "All send as much between nodes"
    return f"{least} sends least between nodes: 1/{most / max(between[least], 1e-9):.3g} of the most"


def _style(axes: Axes, names: Sequence[str]) -> None:
    """Set the axes of bars that have these names, from the top down."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.grid(True, axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("bytes per call, all ranks together / (ranks x size)")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _note(largest: int, unknown: Sequence[str], *, metered: bool) -> str:
    """Return what the caption says of bytes at the size `largest`, and of algorithms whose steps are unknown."""
    note = (
        f"How to read this: shorter is less to send. Payload at {format_size(largest)} by the algorithm's own steps, "
        "own blocks excluded; it grows with the size"
    )
    if metered:
        note += "; counted: by the links' counters, headers included"
    if unknown:
        note += f"\nnot shown, as a library chooses the way: {', '.join(unknown)}"
    return note


def _beside(figure: Figure, width: float, height: float, right: float, down: float, text: str, **style: Any) -> None:
    """Write a number to the right of the bars; `right` and `down` in inches from the upper left corner."""
    figure.text(right / width, 1 - down / height, text, ha="right", va="center", fontsize=9, **style)


def _known(value: Any) -> bool:
    return value is not None and bool(value == value)
