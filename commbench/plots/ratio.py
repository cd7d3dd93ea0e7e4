"""Ratios of two runs against size: a line for each algorithm, bars for the interval, 1 in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from commbench.analysis.compare import CaseComparison
from commbench.files import write_named
from commbench.output.answer.compared import title as conclusion
from commbench.plots.style import (
    MARKERS,
    STYLES,
    algorithm_colour,
    caps,
    legend_below,
    picture,
    ratio_axis,
    size_axis,
    thinned,
    title,
)
from commbench.records import network_note

_MOST_PANELS = 8
_WHAT = "before / after\nabove 1: faster"
_READ = "How to read this: the first run's time over the second's; bars are 95 % intervals; grey: within --threshold."


def draw(comparisons: Sequence[CaseComparison], path: Path, names: str, threshold: float) -> Path:
    """Draw one panel for each set-up, at most eight, into `path` (.png or .svg). What is left out is said in it."""
    set_ups: dict[str, list[CaseComparison]] = {}
    for item in comparisons:
        set_ups.setdefault(item.set_up, []).append(item)
    shown = list(set_ups.items())[:_MOST_PANELS]
    height = 0.4 + 3.2 * len(shown)
    figure = Figure(figsize=(9, height))
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, (set_up, members) in zip(panels, shown, strict=True):
        measured = {item.size_bytes for item in members}
        sizes = thinned(measured)
        lines: dict[str, list[CaseComparison]] = {}
        for item in sorted(members, key=lambda item: item.size_bytes):
            if item.size_bytes in sizes:
                lines.setdefault(item.label, []).append(item)
        labels = [label for label in dict.fromkeys(item.label for item in members) if label in lines]
        for index, label in enumerate(labels):
            line = lines[label]
            at = [item.size_bytes for item in line]
            low = [item.ratio - (item.low if item.low is not None else item.ratio) for item in line]
            high = [(item.high if item.high is not None else item.ratio) - item.ratio for item in line]
            algorithm = label.split()[0]
            axes.errorbar(
                at, [item.ratio for item in line], yerr=[low, high], label=label, linewidth=1.2,
                capsize=caps(index, len(labels)), marker=MARKERS[index % len(MARKERS)], markersize=4.5,
                color=algorithm_colour(algorithm),
                linestyle=STYLES[[other.split()[0] for other in labels[:index]].count(algorithm) % len(STYLES)],
            )  # fmt: skip
        axes.axhline(1, color="#444444", linewidth=1)
        axes.axhspan(1 / (1 + threshold), 1 + threshold, color="#000000", alpha=0.06, linewidth=0)
        ratio_axis(axes, _WHAT)
        size_axis(axes, sizes)
        note = network_note(members[0].fabric)
        left_out = f"{len(sizes)} of {len(measured)} sizes, evenly apart" if len(sizes) < len(measured) else ""
        axes.set_title("\n".join(filter(None, [set_up, note, left_out])), fontsize=9)
        legend_below(axes, sizes)
    names += f"; {len(shown)} of {len(set_ups)} set-ups" if len(shown) < len(set_ups) else ""
    above = title(figure, f"{conclusion(comparisons)} ({names})", 1 - 0.08 / height)
    figure.text(0.01, 0.02 / height, _READ, fontsize=7.5, color="#555555", va="bottom")
    figure.tight_layout(rect=(0, 0.16 / height, 1, 1 - (0.25 + above) / height))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_named(path, picture(figure, path.suffix[1:].lower()))
    return path
