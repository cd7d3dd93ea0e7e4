"""Vega-Lite specifications. Values stand in fields of fixed names, so that nothing of a run is ever an expression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from commbench.report.page import LegendEntry, Spec

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched from there
_HEIGHT = 300
_BAR = 30
# 4096 -> 4 KiB.
_SIZE_LABEL = (
    "datum.value >= 1073741824 ? format(datum.value / 1073741824, '.3~g') + ' GiB' : "
    "datum.value >= 1048576 ? format(datum.value / 1048576, '.3~g') + ' MiB' : "
    "datum.value >= 1024 ? format(datum.value / 1024, '.3~g') + ' KiB' : format(datum.value, '.4~g') + ' B'"
)
_MOST_TICKS = 9
_MOST_DOTS = 40  # of a line


def _base(values: Sequence[Mapping[str, Any]], height: int = _HEIGHT, *, rows: bool = False) -> Spec:
    """Return what all charts have. rows: the height is that of the rows, without the axis below them."""
    fit = {"type": "fit-x" if rows else "fit", "contains": "padding"}
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": fit,
        "data": {"values": list(values)},
    }


def _colours(legend: Sequence[LegendEntry]) -> Spec:
    scale = {"domain": [one.label for one in legend], "range": [one.colour for one in legend]}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": None}


def _dashes(legend: Sequence[LegendEntry]) -> Spec:
    scale = {"domain": [one.label for one in legend], "range": [list(one.dash) or [1, 0] for one in legend]}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": None}


def _size_axis(sizes: Sequence[int]) -> Spec:
    ticks = sorted(set(sizes))
    step = -(-len(ticks) // _MOST_TICKS)
    axis: Spec = {"values": ticks[::step], "labelExpr": _SIZE_LABEL, "grid": False, "labelOverlap": "greedy"}
    scale: Spec = {"type": "log", "base": 2, "nice": False}
    if len(ticks) == 1:
        scale["domain"] = [ticks[0] / 2, ticks[0] * 2]
    return {"field": "x", "type": "quantitative", "title": "size", "scale": scale, "axis": axis}


def _log_axis(values: Sequence[float], title: str, *, zero_line: float | None = None) -> Spec:
    """Return a logarithmic axis; one of few values around 1 is linear."""
    low, high = min(values), max(values)
    if zero_line is not None and high < 2 * low:
        return {"field": "y", "type": "quantitative", "title": title, "scale": {"zero": False, "nice": True}}
    # 1, 2 and 5 of each decade, and more where there is one decade alone.
    subs: Sequence[float] = (1, 2, 5) if high < 1000 * low else (1,)
    subs = (1, 1.5, 2, 3, 5, 7) if high < 8 * low else subs
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{sub * 10.0**decade:.3g}") for decade in decades for sub in subs]
    scale = {"type": "log", "nice": False, "domain": [low / 1.15, high * 1.15]}
    axis = {"values": [tick for tick in ticks if low / 1.15 <= tick <= high * 1.15], "format": ",~r"}
    return {"field": "y", "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def lines(
    points: Sequence[Mapping[str, Any]],
    legend: Sequence[LegendEntry],
    title: str,
    *,
    of_sizes: bool = True,
    x_title: str = "",
    log: bool = True,
    rule: float | None = None,
    height: int = _HEIGHT,
) -> Spec:
    """Return lines with intervals. points: series, x, y, and where there is one, low and high; `text` is shown on them.

    rule: a horizontal line, of ratios the 1.
    """
    ends = [one[key] for one in points for key in ("y", "low", "high") if one.get(key)]
    ends += [rule] if rule is not None else []
    y = (
        _log_axis(ends, title, zero_line=rule)
        if log
        else {"field": "y", "type": "quantitative", "title": title, "scale": {"zero": rule is None}}
    )
    x = (
        _size_axis([one["x"] for one in points])
        if of_sizes
        else {
            "field": "x",
            "type": "quantitative",
            "title": x_title,
            "axis": {"grid": False, "tickMinStep": 1, "format": "d"},
        }
    )
    colour, dash = _colours(legend), _dashes(legend)
    tips = [{"field": "series", "title": "what"}, {"field": "text", "title": "value"}]
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "strokeWidth": 2, "interpolate": "linear", "clip": True},
            "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash, "detail": {"field": "series"}},
        },
    ]
    if any(one.get("low") is not None for one in points):
        y_low = {**y, "field": "low"}
        layers.append(
            {
                "transform": [{"filter": "isValid(datum.low) && isValid(datum.high)"}],
                "mark": {"type": "rule", "strokeWidth": 1.4, "opacity": 0.75},
                "encoding": {"x": x, "y": y_low, "y2": {"field": "high"}, "color": colour},
            }
        )
    dots = [one for one in points if not one.get("bare")]
    many = len(dots) > _MOST_DOTS * len(legend)  # then they are there for who points at them
    layers.append(
        {
            "data": {"values": list(dots)},
            "mark": {"type": "point", "filled": True, "size": 46, "opacity": 0 if many else 1},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": tips},
        }
    )
    if rule is not None:
        layers.append(
            {
                "data": {"values": [{"y": rule}]},
                "mark": {"type": "rule", "strokeDash": [4, 3]},
                "encoding": {"y": {"field": "y", "type": "quantitative"}},
            }
        )
    return {**_base(points, height), "layer": layers}


def bars(
    parts: Sequence[Mapping[str, Any]], legend: Sequence[LegendEntry], title: str, *, order: Sequence[str]
) -> Spec:
    """Return stacked horizontal bars. parts: bar, series, x, text. order: of the bars, from the top."""
    numbered = [{**one, "place": [entry.label for entry in legend].index(one["series"])} for one in parts]
    encoding = {
        "y": {
            "field": "bar",
            "type": "nominal",
            "sort": list(order),
            "title": None,
            "axis": {"labelLimit": 230, "ticks": False, "domain": False},
        },
        "x": {"field": "x", "type": "quantitative", "stack": "zero", "title": title},
        "color": _colours(legend),
        "order": {"field": "place", "type": "quantitative"},
        "tooltip": [
            {"field": "bar", "title": "of"},
            {"field": "series", "title": "what"},
            {"field": "text", "title": "value"},
        ],
    }
    spec = {**_base(numbered, _BAR * len(order), rows=True), "mark": {"type": "bar", "height": {"band": 0.66}}}
    return {**spec, "encoding": encoding}


def intervals(points: Sequence[Mapping[str, Any]], title: str, *, order: Sequence[str], colour: str) -> Spec:
    """Return values with intervals, a row each. points: bar, x, low, high, text; 1 is marked."""
    y = {
        "field": "bar",
        "type": "nominal",
        "sort": list(order),
        "title": None,
        "axis": {"labelLimit": 320, "ticks": False, "domain": False},
    }
    x = {"field": "x", "type": "quantitative", "title": title, "scale": {"zero": False, "nice": True}}
    tips = [{"field": "bar", "title": "of"}, {"field": "text", "title": "value"}]
    layers: list[Spec] = [
        {
            "data": {"values": [{"x": 1}]},
            "mark": {"type": "rule", "strokeDash": [4, 3]},
            "encoding": {"x": {"field": "x", "type": "quantitative"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2, "color": colour},
            "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, "color": colour},
            "encoding": {"y": y, "x": x, "tooltip": tips},
        },
    ]
    return {**_base(points, _BAR * len(order), rows=True), "layer": layers}


def cells(
    values: Sequence[Mapping[str, Any]],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    x_title: str,
    y_title: str,
    colour: Spec,
    step: int,
    square: bool = False,
) -> Spec:
    """Return a grid of coloured cells. values: column, row, text (in the cell), tip, ink, and what `colour` reads."""
    x = {
        "field": "column",
        "type": "nominal",
        "sort": list(columns),
        "title": x_title,
        "axis": {"labelAngle": 0, "ticks": False, "domain": False, "labelOverlap": "greedy"},
    }
    y = {
        "field": "row",
        "type": "nominal",
        "sort": list(rows),
        "title": y_title,
        "axis": {"ticks": False, "domain": False, "labelLimit": 220},
    }
    tips = [
        {"field": "row", "title": y_title or "of"},
        {"field": "column", "title": x_title or "at"},
        {"field": "tip", "title": "value"},
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "cornerRadius": 2},
            "encoding": {
                "x": {**x, "scale": {"padding": 0.04}},
                "y": {**y, "scale": {"padding": 0.04}},
                "color": colour,
                "tooltip": tips,
            },
        },
    ]
    if any(one.get("text") for one in values):
        ink = {"field": "ink", "type": "nominal", "scale": None, "legend": None}
        layers.append(
            {
                "mark": {"type": "text", "fontSize": 11, "lineBreak": "\n", "baseline": "middle"},
                "encoding": {"x": x, "y": y, "text": {"field": "text"}, "color": ink},
            }
        )
    width: Spec = {"width": step * len(columns), "autosize": {"type": "pad"}} if square else {}
    return {
        **_base(values, step * len(rows), rows=True),
        **width,
        "layer": layers,
        "resolve": {"scale": {"color": "independent"}},
    }


def as_given(field: str = "fill") -> Spec:
    """Return a colour that each value brings itself."""
    return {"field": field, "type": "nominal", "scale": None, "legend": None}


def shades(low: float, high: float, title: str) -> Spec:
    """Return a logarithmic scale of colours, dark for much, with its legend. The field is `value`."""
    return {
        "field": "value",
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "scheme": "viridis", "reverse": True, "domain": [low, high]},
        "legend": {"gradientLength": 180, "format": ".2~f", "orient": "right"},
    }
