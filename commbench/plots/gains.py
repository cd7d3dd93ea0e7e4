"""What a profile gains over the defaults, against size: one panel for each curve, bars for the 95 % intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from commbench.output.answer import words
from commbench.plots.style import MARKERS, algorithm_colour, legend_below, ratio_axis, size_axis, title
from commbench.profile import Choice, Evidence, Profile

_MOST_PANELS = 8
_READ = "How to read this: the default's time over the choice's; bars are 95 % intervals; grey is too little to count."
_UNCHANGED = "#888888"
_WIDTH = 9  # inches
_TITLE_LETTERS, _LEGEND_LETTERS = 130, 120  # that fit side by side
_LEAST_SPAN = (0.96, 1.1)  # of the axis: a point with nothing around it says nothing


def gains(profile: Profile) -> Figure | None:
    """Draw the gain at each size; None for a profile without evidence."""
    panels: dict[str, list[Choice]] = {}
    for choice in profile.choices:
        if choice.evidence:
            asked = " ".join(f"{key}={value}" for key, value in choice.arguments.items())
            how = "in a CUDA graph" if choice.captured else ""
            name = ", ".join(word for word in (choice.collective, asked, how, str(profile.scope(choice.scope))) if word)
            panels.setdefault(name, []).append(choice)
    curves = len(panels)
    panels = dict(list(panels.items())[:_MOST_PANELS])
    if not panels:
        return None
    height = 0.8 + 3.2 * len(panels)
    room = (0, 0.45 / height, 1, 1 - 0.8 / height)  # between the title and what is said below
    figure = Figure(figsize=(_WIDTH, height), layout=ConstrainedLayoutEngine(rect=room, h_pad=0.1))
    axes_of = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (name, choices) in zip(axes_of, panels.items(), strict=True):
        _panel(axes, choices, profile.minimum_gain)
        axes.set_title("\n".join(textwrap.wrap(name, _TITLE_LETTERS)), fontsize=8)
    left_out = f"; {_MOST_PANELS} of {curves} curves" if curves > _MOST_PANELS else ""
    title(figure, f"{conclusion(profile)}{left_out}", 1 - 0.08 / height)
    made = f"{profile.machine} | {profile.created[:10]} | commbench {profile.commbench_version}"
    figure.text(0.01, 0.01, f"{_READ}\n{made}", fontsize=7.5, color="#555555", va="bottom")
    return figure


def conclusion(profile: Profile) -> str:
    """Return what the profile gains where it gains something."""
    found = [one for choice in profile.choices for one in choice.evidence]
    ratios = [one.ratio for one in found if one.confirmed]
    if not ratios:
        return "Nothing is proven faster than the default"
    factors = words.ratios(ratios, None, None)
    return f"The profile is {factors} as fast as the default, in {len(ratios)} of {len(found)} cases"


def _panel(axes: Axes, choices: Sequence[Choice], minimum: float) -> None:
    points = [(choice, one) for choice in sorted(choices, key=lambda c: c.min_bytes) for one in choice.evidence]
    axes.plot([one.size_bytes for _, one in points], [one.ratio for _, one in points], color="#bbbbbb", linewidth=1)
    labels = list(dict.fromkeys(choice_label(choice, one) for choice, one in points))
    for index, label in enumerate(labels):
        mine = [(choice, one) for choice, one in points if choice_label(choice, one) == label]
        ratios = [one.ratio for _, one in mine]
        low = [one.ratio - (one.low if one.low is not None else one.ratio) for _, one in mine]
        high = [(one.high if one.high is not None else one.ratio) - one.ratio for _, one in mine]
        axes.errorbar(
            [one.size_bytes for _, one in mine], ratios, yerr=[low, high], label=label, capsize=2.5, linestyle="none",
            marker=MARKERS[index % len(MARKERS)], markersize=5.5,
            color=algorithm_colour(mine[0][0].algorithm) if mine[0][1].confirmed else _UNCHANGED,
        )  # fmt: skip
    controls = [(one.size_bytes, one.apparent) for _, one in points if one.apparent is not None]
    if controls:
        axes.plot(*zip(*controls, strict=True), "x", color="#444444", markersize=4, label="default beside itself (A-A)")
    axes.axhline(1, color="#444444", linewidth=1)
    axes.axhspan(1, 1 + minimum, color="#000000", alpha=0.06, linewidth=0)
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, _LEAST_SPAN[0]), max(top, _LEAST_SPAN[1]))
    ratio_axis(axes, "default / choice\nabove 1: faster")
    sizes = sorted({one.size_bytes for _, one in points})
    size_axis(axes, sizes)
    if len(sizes) == 1:
        axes.set_xlim(sizes[0] / 4, sizes[0] * 4)
    legend_below(axes, sizes, _LEGEND_LETTERS)


def choice_label(choice: Choice, one: Evidence) -> str:
    """Return the name of a choice in pictures."""
    buffers = f", {choice.buffers}" if choice.buffers != "plain" else ""
    return f"{choice.label}{buffers}" + ("" if one.confirmed else " (default kept)")
