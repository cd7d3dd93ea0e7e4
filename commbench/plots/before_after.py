"""Bandwidth against size, before and after: without a profile and with it, or of two runs; the bound where it is known.

It is Figure 2 of Tutel's paper (arXiv:2206.03382) for anybody's machine.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commbench import collectives
from commbench.analysis.bounds import Rates
from commbench.analysis.compare import CaseComparison, Yardstick
from commbench.layout import Layout
from commbench.links import least_time
from commbench.output.answer import words
from commbench.plots.style import ALGORITHM, BUS, MARKERS, algorithm_colour, legend_below, size_axis, title, value_axis
from commbench.profile import Choice, Evidence, Profile, Scope
from commbench.records import NOMINAL
from commbench.spec import Spec
from commbench.units import format_size, gbps

_MOST_PANELS = 6
_WIDTH, _PANEL = 9.0, 3.9  # inches
_TITLE_LETTERS = 125
# Microseconds that links need at the least: by run, collective and size.
Bounds = Mapping[tuple[str, str, int], float]
_BEFORE, _BOUND = "#777777", "#444444"
_READ = "How to read this: higher is better. Both axes are logarithmic: a gap of the same height is the same factor."


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthPoint:
    """GB/s at one size. low, high: of the ratio after / before, its 95 % interval; None where there is none."""

    size_bytes: int
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    better: bool = False  # for certain


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthLines:
    """One thing before and after."""

    label: str
    algorithm: str  # whose colour it has; "" where it has several
    points: Sequence[BandwidthPoint]


@dataclass(slots=True, kw_only=True)
class BandwidthPanel:
    """What shares a set-up. bus: whether GB/s are those of busbw. bound: GB/s by size."""

    name: str
    lines: list[BandwidthLines]
    bus: bool
    bound: dict[int, float] = field(default_factory=dict)

    @property
    def gains(self) -> list[BandwidthPoint]:
        """Return the points that are faster for certain."""
        return [point for line in self.lines for point in line.points if point.better]

    def __str__(self) -> str:
        """Return what it shows, in a few words: `1.21x to 1.58x from 4 KiB to 32 KiB`."""
        if not self.gains:
            return "nothing is proven faster"
        ratios = words.ratios([point.after / point.before for point in self.gains], None, None)
        sizes = sorted({point.size_bytes for point in self.gains})
        measured = sorted({point.size_bytes for line in self.lines for point in line.points})
        together = measured[measured.index(sizes[0]) : measured.index(sizes[-1]) + 1] == sizes
        at = words.sizes(sizes) if together else words.listed([format_size(size) for size in sizes])
        return f"{ratios} the bandwidth {at if together else f'at {at}'}"


def figure(panels: Sequence[BandwidthPanel], names: tuple[str, str], what: str, meta: str) -> Figure:
    """Draw the panels below each other. names: of before and after. what: begins the title. meta: the last line."""
    panels = panels[:_MOST_PANELS]
    sizes_of = [sorted({point.size_bytes for line in panel.lines for point in line.points}) for panel in panels]
    height = 0.5 + _PANEL * len(panels) + 0.75
    drawn = Figure(figsize=(_WIDTH, height))
    axes_of = drawn.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, panel, sizes in zip(axes_of, panels, sizes_of, strict=True):
        _panel(axes, panel, names)
        size_axis(axes, sizes)
        if len(sizes) == 1:
            axes.set_xlim(sizes[0] / 4, sizes[0] * 4)
        value_axis(axes, BUS if panel.bus else ALGORITHM)
        legend_below(axes, sizes)
        conclusion = f"{panel}\n" if len(panels) > 1 else ""
        axes.set_title(conclusion + "\n".join(textwrap.wrap(panel.name, _TITLE_LETTERS)), fontsize=8)
    title(drawn, f"{what}: {_conclusion(panels)}", 1 - 0.08 / height)
    drawn.text(0.01, 0.01, "\n".join([*textwrap.wrap(_READ, 150), meta]), fontsize=7.5, color="#555555", va="bottom")
    drawn.tight_layout(rect=(0, 0.55 / height, 1, 1 - 0.22 / height))
    return drawn


def _conclusion(panels: Sequence[BandwidthPanel]) -> str:
    """Return what all panels show together."""
    if len(panels) == 1:
        return str(panels[0])
    ratios = [point.after / point.before for panel in panels for point in panel.gains]
    if not ratios:
        return "nothing is proven faster"
    count = sum(bool(panel.gains) for panel in panels)
    return f"{words.ratios(ratios, None, None)} the bandwidth in {count} of {len(panels)} set-ups"


def _panel(axes: Axes, panel: BandwidthPanel, names: tuple[str, str]) -> None:
    """Draw each line twice: before dashed and open, after solid and filled; and the bound above all."""
    single = len(panel.lines) == 1
    for index, line in enumerate(panel.lines):
        points = sorted(line.points, key=lambda point: point.size_bytes)
        at = [point.size_bytes for point in points]
        colour = algorithm_colour(line.algorithm) if line.algorithm else "#0072B2"
        marker, of = MARKERS[index % len(MARKERS)], "" if single and not line.label else f"{line.label}, "
        before = [point.before for point in points]
        axes.plot(at, before, marker=marker, markersize=5, markerfacecolor="white", linestyle="--", linewidth=1.2,
                  color=_BEFORE if single else colour, label=f"{of}{names[0]}")  # fmt: skip
        after = [point.after for point in points]
        bars = [
            [max(0.0, p.after - p.before * p.low) if p.low is not None else 0.0 for p in points],
            [max(0.0, p.before * p.high - p.after) if p.high is not None else 0.0 for p in points],
        ]
        axes.errorbar(at, after, yerr=bars, marker=marker, markersize=5, color=colour, linewidth=1.5, capsize=2.5,
                      label=f"{of}{names[1]}")  # fmt: skip
        for point in points if single else ():
            if point.better:
                top = max(point.after, point.before * (point.high or 0.0))
                axes.annotate(f"{point.after / point.before:.2f}x", (point.size_bytes, top), (0, 6),
                              textcoords="offset points", ha="center", fontsize=7.5, color=colour,
                              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    if panel.bound:
        sizes = sorted(panel.bound)
        axes.plot(sizes, [panel.bound[size] for size in sizes], color=_BOUND, linestyle=":", linewidth=1.3,
                  marker="_" if len(sizes) == 1 else "", label="bound: what the links allow")  # fmt: skip
    bottom, top = _span(panel)
    part = (top / bottom) ** 0.06
    axes.set_ylim(bottom / part, top * part**3)  # above the points are their factors


def _span(panel: BandwidthPanel) -> tuple[float, float]:
    """Return the ends of the axis, at the least a factor of 3 apart: what is nearly the same shall look so."""
    points = [point for line in panel.lines for point in line.points]
    ends = [point.before * (point.high or 0.0) for point in points]
    values = [*(p.before for p in points), *(p.after for p in points), *ends, *panel.bound.values()]
    known = [value for value in values if value > 0]
    middle = (min(known) * max(known)) ** 0.5
    return min(*known, middle / 3**0.5), max(*known, middle * 3**0.5)


def profile_panels(profile: Profile, bounds: Bounds) -> list[BandwidthPanel]:
    """Return the bandwidth without a profile and with it, a panel for each curve that has evidence."""
    by_name: dict[str, list[tuple[Choice, Evidence]]] = {}
    for choice in profile.choices:
        for one in choice.evidence:
            asked = " ".join(f"{key}={value}" for key, value in choice.arguments.items())
            how = "in a CUDA graph" if choice.captured else ""
            words_of = [choice.collective, asked, how, one.dtype, str(profile.scope(choice.scope))]
            by_name.setdefault(", ".join(filter(None, words_of)), []).append((choice, one))
    return [_of_evidence(name, found, profile, bounds) for name, found in by_name.items()]


def of_profile(profile: Profile, bounds: Bounds) -> Figure | None:
    """Draw the bandwidth without a profile and with it; None without evidence."""
    panels = profile_panels(profile, bounds)
    made = f"{profile.machine} | {profile.created[:10]} | commbench {profile.commbench_version}"
    return figure(panels, ("default", "with the profile"), "With the profile", made) if panels else None


def declared_bounds(profile: Profile, rates: Rates) -> dict[tuple[str, str, int], float]:
    """Return what links of these rates need at the least for what a profile has evidence of, as `Bounds`."""
    found = {}
    for choice in profile.choices:
        scope = profile.scope(choice.scope)
        links = {link: rate for link, rate in rates.items() if not (link == "inter" and scope.fabric in NOMINAL)}
        if not scope.nodes or not scope.ranks_per_node:
            continue
        layout = Layout(scope.nodes, scope.ranks_per_node)
        for one in choice.evidence:
            spec = Spec(collective=choice.collective, dtype=one.dtype, size_bytes=one.size_bytes, layout=layout,
                        arguments=choice.arguments)  # fmt: skip
            if least := least_time(collectives.get(choice.collective).needs(spec), links, layout):
                found[one.run, choice.collective, one.size_bytes] = least.us
    return found


def _of_evidence(
    name: str, found: Sequence[tuple[Choice, Evidence]], profile: Profile, bounds: Bounds
) -> BandwidthPanel:
    """Return the panel of one curve. Where the default was kept, both lines have it."""
    points, bound, factor = [], {}, None
    for choice, one in found:
        factor = _factor(choice, one, profile.scope(choice.scope))
        before = (factor or 1.0) * gbps(one.size_bytes, one.default_us)
        ratio, low, high = (one.ratio, one.low, one.high) if one.confirmed else (1.0, None, None)
        points.append(BandwidthPoint(size_bytes=one.size_bytes, before=before, after=before * ratio, low=low, high=high,
                                     better=one.confirmed))  # fmt: skip
        if us := bounds.get((one.run, choice.collective, one.size_bytes)):
            bound[one.size_bytes] = (factor or 1.0) * gbps(one.size_bytes, us)
    lines = [BandwidthLines(label="", algorithm="", points=points)]
    return BandwidthPanel(name=name, lines=lines, bus=factor is not None, bound=bound)


def _factor(choice: Choice, one: Evidence, scope: Scope) -> float | None:
    """Return what makes a busbw of an algbw; None where that is not known, or means nothing."""
    if not scope.nodes or not scope.ranks_per_node:
        return None
    spec = Spec(collective=choice.collective, dtype=one.dtype, size_bytes=one.size_bytes,
                layout=Layout(scope.nodes, scope.ranks_per_node), arguments=choice.arguments)  # fmt: skip
    return collectives.get(choice.collective).busbw_factor(spec)


def of_runs(
    comparisons: Sequence[CaseComparison], yardsticks: Mapping[tuple[str, int], Yardstick], meta: str
) -> Figure | None:
    """Draw two runs, before and after; None where nothing was compared. yardsticks: by set-up and size."""
    panels = []
    for set_up in dict.fromkeys(item.set_up for item in comparisons):
        members = [item for item in comparisons if item.set_up == set_up]
        known = {item.size_bytes: yardsticks.get((set_up, item.size_bytes), Yardstick()) for item in members}
        lines = []
        for label in dict.fromkeys(item.label for item in members):
            points = [_compared(item, known[item.size_bytes]) for item in members if item.label == label]
            lines.append(BandwidthLines(label=label, algorithm=label.split()[0], points=points))
        bound = {size: of.gbps(size, of.bound_us) for size, of in known.items() if of.bound_us}
        bus = any(of.factor for of in known.values())
        panels.append(BandwidthPanel(name=set_up, lines=lines, bus=bus, bound=bound))
    return figure(panels, ("before", "after"), "After against before", meta) if panels else None


def _compared(item: CaseComparison, of: Yardstick) -> BandwidthPoint:
    before = of.gbps(item.size_bytes, item.before_us)
    return BandwidthPoint(size_bytes=item.size_bytes, before=before, after=before * item.ratio, low=item.low,
                          high=item.high, better=item.outcome == "better")  # fmt: skip
