"""Bandwidth and time against size: a line for each algorithm, its intervals, and the bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from commbench.plots import style
from commbench.plots.curves import MOST_LINES, note_of, thinned_rows, title_of
from commbench.plots.settings import FIGURE_KEYS, complete
from commbench.records import Status
from commbench.report import charts
from commbench.report.page import (
    LegendEntry,
    PageChart,
)
from commbench.units import format_size

if TYPE_CHECKING:
    import pandas as pd

_MOST_FIGURES, _MOST_POINTS = 24, 2500  # of curves: more is no page
_BOUND_COLOUR, _NOTHING = "#7d8590", "#d0d3d8"
_DASHES: Sequence[Sequence[int]] = ((), (2, 3), (8, 3, 2, 3), (10, 4))


def curve_charts(frame: pd.DataFrame, meta: Mapping[str, Any]) -> list[PageChart]:
    """Return the curves of each set-up, the first ones where they are many."""
    ok = complete(frame[frame["status"] == Status.OK])
    made: list[PageChart] = []
    groups = list(ok.groupby(FIGURE_KEYS, sort=False))
    points = 0
    for key, of_group in groups[:_MOST_FIGURES]:
        setting: dict[str, Any] = {name: value for name, value in zip(FIGURE_KEYS, key, strict=True)}  # noqa: C416
        rows = of_group.drop_duplicates(["label", "size_bytes"])  # under several seeds
        points += min(len(rows), style.MOST_SIZES * MOST_LINES)
        if points > _MOST_POINTS and made:
            break
        made.append(_curve(rows, setting, meta))
    if len(groups) > len(made):
        note(made, f"Of {len(groups)} set-ups {len(made)} are drawn; the table below has all.")
    return made


def note(made: list[PageChart], text: str) -> None:
    """Say something below the last chart."""
    last = made[-1]
    made[-1] = PageChart(
        title=last.title,
        panels=last.panels,
        legend=last.legend,
        subtitle=last.subtitle,
        says=f"{last.says} {text}".strip(),
    )


def _curve(everything: pd.DataFrame, setting: Mapping[str, Any], meta: Mapping[str, Any]) -> PageChart:
    rows, left_out = thinned_rows(everything.assign(time_us=everything["time_us"].astype(float)))
    shown = "busbw_gbps" if rows["busbw_gbps"].notna().any() else "algbw_gbps"
    foreign = rows["case_id"].isna()
    lines = [*rows[~foreign].groupby("label", sort=True), *rows[foreign].groupby("label", sort=True)]
    legend, times, rates = [], [], []
    variants: Counter[str] = Counter()
    for label, line in lines:
        of_others = bool(line["case_id"].isna().all())
        algorithm = "" if of_others else str(line["algorithm"].iloc[0])
        colour = style.FOREIGN if of_others else style.algorithm_colour(algorithm)
        legend.append(LegendEntry(label=str(label), colour=colour, dash=_DASHES[variants[algorithm] % len(_DASHES)]))
        variants[algorithm] += 1
        for one in line.sort_values("size_bytes").to_dict("records"):
            times.append(_point(label, one, "time_us", "us"))
            if known(one[shown]):
                rates.append(_rate(label, one, shown))
    bounded = rows.dropna(subset=["bound_us", shown])
    for one in bounded.drop_duplicates(["run", "size_bytes"]).to_dict("records"):
        size = one["size_bytes"]
        times.append({"series": "bound", "x": int(size), "y": one["bound_us"], "bare": True})
        rates.append(
            {"series": "bound", "x": int(size), "y": one[shown] * one["time_us"] / one["bound_us"], "bare": True}
        )
    if len(bounded):
        legend.append(LegendEntry(label="bound: what the links allow", colour=_BOUND_COLOUR, dash=(4, 4)))
    # Far below what is measured the bound of small sizes says nothing, and takes the room.
    least = min(one["y"] for one in times if not one.get("bare")) / 3
    times = [one for one in times if not one.get("bare") or one["y"] >= least]
    for one in (*times, *rates):
        one["series"] = legend[-1].label if one.get("bare") else one["series"]
    bandwidth = style.BUS if shown == "busbw_gbps" else style.ALGORITHM
    panels = [charts.lines(rates, legend, bandwidth)] if rates else []
    panels.append(charts.lines(times, legend, "time, us"))
    whole = title_of(everything, setting)
    found, _, of_what = whole.rpartition(" (")
    notes = [*left_out, note_of(everything, setting, meta, bounded=bool(len(bounded)))]
    says = " ".join(["Left, higher is better; right, lower is. Axes are logarithmic.", *map(sentence, notes)])
    return PageChart(
        title=found or whole,
        subtitle=of_what.removesuffix(")") if found else "",
        panels=panels,
        legend=legend,
        says=sentence(says),
    )


def sentence(text: str) -> str:
    """Return a note of a picture as a sentence of a page."""
    text = " ".join(text.split()).removeprefix("How to read this: ").strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".") if text else ""


def _point(series: Any, one: Mapping[str, Any], column: str, unit: str) -> dict[str, Any]:
    low, high = one["time_us_low"], one["time_us_high"]
    text = f"{one[column]:.4g} {unit} at {format_size(int(one['size_bytes']))}"
    ends = {"low": low, "high": high} if known(low) and known(high) else {}
    text += f" [{low:.4g}-{high:.4g}]" if ends else ""
    return {"series": str(series), "x": int(one["size_bytes"]), "y": float(one[column]), "text": text, **ends}


def _rate(series: Any, one: Mapping[str, Any], column: str) -> dict[str, Any]:
    gbps, time, low, high = one[column], one["time_us"], one["time_us_low"], one["time_us_high"]
    ends = {"low": gbps * time / high, "high": gbps * time / low} if known(low) and known(high) and low else {}
    text = f"{gbps:.4g} GB/s at {format_size(int(one['size_bytes']))}"
    return {"series": str(series), "x": int(one["size_bytes"]), "y": float(gbps), "text": text, **ends}


def known(value: Any) -> bool:
    """Return whether a frame has a value."""
    return value is not None and value == value
