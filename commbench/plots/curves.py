"""Bandwidth and time against size: a line per algorithm, bars for the interval, the bound where it is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commbench.output.answer.preemption import BUSY_PERCENT, MANY
from commbench.output.answer.sweep import picture_title
from commbench.output.describe import crowded
from commbench.plots.settings import (
    FIGURE_KEYS,
    complete,
    file_name,
    file_words,
    join,
    layout_text,
    nodes_text,
    title_words,
)
from commbench.plots.style import (
    ALGORITHM,
    BUS,
    FOREIGN,
    MARKERS,
    STYLES,
    algorithm_colour,
    caps,
    caption,
    size_axis,
    thinned,
    tilted,
    title,
    value_axis,
)
from commbench.records import Fabric, network_note

if TYPE_CHECKING:
    import pandas as pd


_WIDTH, _HEIGHT = 10.5, 5.05  # inches
_LEGEND_LINE = 0.195  # inches
_READ = "How to read this: a line is an algorithm. Left, higher is better; right, lower is. Axes are logarithmic."
MOST_LINES = len(MARKERS) * len(STYLES)
_NUMBERS = ("time_us", "time_us_low", "time_us_high", "algbw_gbps", "busbw_gbps", "bound_us")


def curves(frame: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw figures, by file name, none for rows without numbers.

    `frame` has the columns of `Row`, `run` and `label`.
    """
    ok = complete(frame[frame["status"] == "ok"])
    figures = {}
    for key, rows in ok.groupby(FIGURE_KEYS, sort=False):
        setting: dict[str, Any] = {name: value for name, value in zip(FIGURE_KEYS, key, strict=True)}  # noqa: C416
        words = [setting["what"], setting["transport"], layout_text(setting), *file_words(setting).values()]
        name = file_name(words)
        # A declared network and a real one, each of a run of its own.
        figures[name if name not in figures else file_name([*words, setting["fabric"]])] = _figure(rows, setting, meta)
    return figures


def _figure(rows: pd.DataFrame, setting: Mapping[str, Any], meta: Mapping[str, Any]) -> Figure:
    figure = Figure()
    bandwidth, latency = figure.subplots(1, 2)
    rows = rows.assign(**{name: rows[name].astype(float) for name in _NUMBERS})  # a column of None has no type
    everything = rows
    rows, left_out = thinned_rows(rows)
    sizes = sorted(int(size) for size in rows["size_bytes"].unique())
    # A collective whose algorithms move unlike amounts has no busbw.
    shown = "busbw_gbps" if rows["busbw_gbps"].notna().any() else "algbw_gbps"
    _draw_lines(bandwidth, latency, rows, shown)
    bounded = _draw_bound(bandwidth, latency, rows, shown)
    for axes in (bandwidth, latency):
        size_axis(axes, sizes, "busiest" if "all_to_allv" in setting["what"] else "one")
    # Far below what is measured the bound of small sizes says nothing, and takes the room.
    latency.set_yscale("log")
    latency.set_ylim(bottom=rows["time_us"].min() / 3)
    value_axis(bandwidth, BUS if shown == "busbw_gbps" else ALGORITHM)
    value_axis(latency, "time (us)")
    bandwidth.set_title("bandwidth: higher is better", fontsize=9.5)
    latency.set_title("time: lower is better", fontsize=9.5)
    figure.set_size_inches(_WIDTH, _HEIGHT)
    text = title_of(everything, setting)
    above = title(figure, text, 1.0)
    height, legend = _add_legend(figure, latency, above)
    title(figure, text, 1 - 0.075 / height)
    note = note_of(everything, setting, meta, bounded=bounded)
    caption(figure, meta, "\n".join([_READ, *left_out, note]))
    below = (1.4 if tilted(sizes) else 1.13) + 0.13 * len(left_out)
    top, bottom = 1 - (0.88 + above + legend) / height, below / height
    figure.subplots_adjust(left=0.085, right=0.985, top=top, bottom=bottom, wspace=0.22)
    return figure


def thinned_rows(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows that there is room for, and in words what is left out: lines far from the fastest, sizes."""
    said = []
    ours = rows[rows["case_id"].notna()]
    behind = ours["time_us"] / ours.groupby("size_bytes")["time_us"].transform("min")
    nearest = behind.groupby(ours["label"], sort=True).min().sort_values(kind="stable").index
    if len(nearest) > MOST_LINES:
        rows = rows[rows["case_id"].isna() | rows["label"].isin(nearest[:MOST_LINES])]
        said.append(
            f"of {len(nearest)} lines {MOST_LINES} are drawn: the fastest at some size, and those nearest to it"
        )
    measured = rows["size_bytes"].nunique()
    kept = rows.groupby("label")["size_bytes"].transform(lambda sizes: sizes.isin(thinned(set(sizes))))
    rows = rows[kept.astype(bool)]
    if (drawn := rows["size_bytes"].nunique()) < measured:
        said.append(f"of {measured} sizes {drawn} are drawn, evenly apart; all are in results.parquet")
    return rows, said


def _draw_lines(bandwidth: Axes, latency: Axes, rows: pd.DataFrame, shown: str) -> None:
    """Draw a line for each label, with its intervals, into both panels. `shown`: the column of the bandwidth."""
    foreign = rows["case_id"].isna()  # of other programs: last, and grey
    # The same line for the same label, whatever finished first.
    lines = [*rows[~foreign].groupby("label", sort=True), *rows[foreign].groupby("label", sort=True)]
    variants: Counter[str] = Counter()  # of one algorithm, in its colour: parameters, runs
    for index, (label, unsorted) in enumerate(lines):
        line = unsorted.sort_values("size_bytes")
        at = line["size_bytes"]
        is_foreign = bool(line["case_id"].isna().all())
        algorithm = "" if is_foreign else str(line["algorithm"].iloc[0])
        style: dict[str, Any] = {
            "color": FOREIGN if is_foreign else algorithm_colour(algorithm),
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 4.5,
            "linestyle": "--" if is_foreign else STYLES[variants[algorithm] % len(STYLES)],
            "linewidth": 1.4,
            "capsize": caps(index, len(lines)),
            "elinewidth": 1.0,
            "label": label,
        }
        variants[algorithm] += 1
        time, low, high = line["time_us"], line["time_us_low"], line["time_us_high"]
        latency.errorbar(at, time, yerr=[(time - low).clip(lower=0), (high - time).clip(lower=0)], **style)
        # The interval is one of times; bandwidth is computed from its ends.
        gbps = line[shown]
        bars = [(gbps - gbps * time / high).clip(lower=0), (gbps * time / low - gbps).clip(lower=0)]
        bandwidth.errorbar(at, gbps, yerr=bars, **style)


def _draw_bound(bandwidth: Axes, latency: Axes, rows: pd.DataFrame, shown: str) -> bool:
    """Draw what the links allow into both panels. Return whether it is known of any size."""
    known = rows.dropna(subset=["bound_us", shown]).assign(bound_kind=lambda rows: rows["bound_kind"].fillna(""))
    drawn: list[dict[int, float]] = []
    for (kind, run), of_run in known.groupby(["bound_kind", "run"], sort=False):
        bound = of_run.drop_duplicates("size_bytes").sort_values("size_bytes")
        line = {size: round(us, 6) for size, us in zip(bound["size_bytes"], bound["bound_us"], strict=True)}
        if any(line.items() <= other.items() for other in drawn):
            continue
        label = f"bound ({kind})" if kind else "bound"
        dashed: dict[str, Any] = {"color": "#444444", "linewidth": 1.1, "label": f"{label}, {run}" if drawn else label}
        dashed |= {"linestyle": ("--", ":", "-.")[len(drawn) % 3]} | ({"marker": "_"} if len(bound) == 1 else {})
        drawn.append(line)
        bandwidth.plot(bound["size_bytes"], bound[shown] * bound["time_us"] / bound["bound_us"], **dashed)
        latency.plot(bound["size_bytes"], bound["bound_us"], **dashed)
    return bool(drawn)


def _add_legend(figure: Figure, axes: Axes, above: float) -> tuple[float, float]:
    """Set the figure's size and draw the legend of `axes` on top, below a title that takes `above` inches more.

    Return the height of the figure, and of the legend's lines after the first, both in inches.
    """
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), 6, 110 // (max(map(len, labels)) + 6)))
    lines_more = _LEGEND_LINE * (-(-len(labels) // columns) - 1)
    height = _HEIGHT + above + lines_more
    figure.set_size_inches(_WIDTH, height)
    figure.legend(
        handles, labels, loc="upper center", ncols=columns, frameon=False, fontsize=9, borderpad=0,
        bbox_to_anchor=(0.5, 1 - (0.33 + above) / height),
    )  # fmt: skip
    return height, lines_more


def note_of(rows: pd.DataFrame, setting: Mapping[str, Any], meta: Mapping[str, Any], *, bounded: bool) -> str:
    """Return what the caption says: how points and bars are made, and what to be careful with."""
    launches = int(rows["launches"].max())
    counted = f"{launches} launch{'es' if launches > 1 else ''}"
    known = set(rows["interval_of"].dropna())
    spread = f"95 % interval over {counted}" if known == {"launches"} else f"95 % interval of samples in {counted} only"
    note = (
        f"points: median of the slowest rank's time; bars: {spread if known else 'none, as there are too few samples'}"
    )
    note += "; grey: as its source gives it" if rows["case_id"].isna().any() else ""
    note += "" if bounded else "; no bound: no link rate is known"
    careful = [network_note(setting["fabric"]), _preempted(rows)]
    careful.append(crowded(meta, setting["transport"], setting["fabric"], int(setting["ranks"])))
    return "\n".join([note, "; ".join(filter(None, careful))]).rstrip()


def _preempted(rows: pd.DataFrame) -> str:
    """Return how many samples were preempted, where that is many."""
    if "preempted" not in rows or not rows["preempted"].notna().any():
        return ""
    known = rows[rows["preempted"].notna()]
    known = known[(known["fabric"] != Fabric.EMULATED) | (known["cpu_percent"].astype(float) > BUSY_PERCENT)]
    share = float(known["preempted"].sum()) / max(1.0, float(known["samples"].sum()))
    return f"{100 * share:.0f} % of samples were preempted: ranks had no CPU to themselves" if share >= MANY else ""


def title_of(rows: pd.DataFrame, setting: Mapping[str, Any]) -> str:
    """Return what the rows prove, then of what they are."""
    of = join(f"{setting['what']} over {setting['transport']}", nodes_text(setting), *title_words(setting).values())
    proven = picture_title(rows.to_dict("records"))
    return f"{proven} ({of})" if proven else of
