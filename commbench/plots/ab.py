"""A/B of a program: both arms round by round, and the ratio; of a training also where its steps wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from commbench.ab.launches import ProgramLaunch
from commbench.ab.pairs import ARMS, BASELINE
from commbench.output.answer import arms
from commbench.plots import save
from commbench.plots.style import caption, title
from commbench.records import network_note
from commbench.stats import PAIRS_FOR_CLAIM, Verdict
from commbench.train.ab import Launched, Outcome
from commbench.train.ab_expected import from_facts
from commbench.train.results import ranks_text

ARM_COLOURS = {"baseline": "#777777", "candidate": "#0072B2"}


def draw_programs(launches: Sequence[ProgramLaunch], about: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw an A/B of a program as PNG and SVG into `out`; return the PNG. `about`: of `ab.json`.

    `launches`: those of whole rounds.
    """
    figure = Figure(figsize=(9, 4.3))
    left, right = figure.subplots(1, 2, width_ratios=(3, 1.2))
    unit = f" ({about['unit']})" if about["unit"] else ""
    _rounds(left, launches, lambda one: one.value, f"{about['compared']}{unit}")
    control = about["control"]
    _ratios(right, [("measured", about["ratio"], about["low"], about["high"])]
            + ([("control", control["ratio"], control["low"], control["high"])] if control else []))  # fmt: skip
    right.set_ylabel("candidate / baseline, above 1: better")
    found = arms.title(
        Verdict(about["verdict"]), about["ratio"], about["low"], about["high"], rounds=about["rounds"],
        what=about["compared"], failed=about["failed"],
    )  # fmt: skip
    title(figure, f"{found} ({about['title']})", 0.98)
    caption(figure, about, f"{about['answer']} Control: launches of one arm that followed each other.")
    figure.tight_layout(rect=(0, 0.09, 1, 0.98))
    return save({"ab": figure}, out)


def _rounds(axes: Axes, launches: Sequence[Any], value: Callable[[Any], float], label: str) -> None:
    """Draw the launches of both arms, round by round."""
    for arm in ARMS:
        mine = sorted((one for one in launches if one.arm == arm), key=lambda one: one.round)
        axes.plot([one.round + 1 for one in mine], [value(one) for one in mine], "o-", color=ARM_COLOURS[arm],
                  markersize=4, linewidth=1, label=arm)  # fmt: skip
    axes.set_ylim(0, 1.1 * max(value(one) for one in launches))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, max(one.round for one in launches) + 1.5)  # one round has an axis too
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left")


def _ratios(axes: Axes, ratios: Sequence[tuple[str, float, float | None, float | None]]) -> None:
    """Draw ratios beside each other, with their intervals where they have one."""
    for place, (_, value, low, high) in enumerate(ratios):
        spread = None if low is None or high is None else [[value - low], [high - value]]
        colour, marker = (ARM_COLOURS["candidate"], "o") if place == 0 else ("#D55E00", "x")
        axes.errorbar([place], [value], yerr=spread, fmt=marker, color=colour, capsize=4)
    axes.axhline(1, color="#444444", linewidth=1)
    axes.set_xticks(range(len(ratios)), [name for name, *_ in ratios])
    axes.set_xlim(-0.6, len(ratios) - 0.4)
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axes.margins(y=0.3)
    axes.tick_params(axis="x", labelsize=8)


def draw(launches: Sequence[Launched], outcome: Outcome, about: Mapping[str, Any], names: str, out: Path) -> list[Path]:
    """Draw both arms as PNG and SVG into `out`; return the PNG. `about`: of `ab.json`; `names`: how the arms differ."""
    predicted = from_facts(about)
    figure = Figure(figsize=(9, 4.3))
    left, middle, right = figure.subplots(1, 3, width_ratios=(3, 1.2, 1.2))
    _rounds(left, launches, lambda one: one.tokens_per_s, "tokens per second, median step")
    known = outcome.low is not None and outcome.high is not None
    _ratios(middle, [("measured", outcome.ratio, outcome.low, outcome.high)]
            + ([("predicted", predicted.value, predicted.low, predicted.high)] if predicted else []))  # fmt: skip
    if predicted is not None and predicted.corrected is not None:
        middle.plot([1.2, 1.2], predicted.corrected, color="#D55E00", alpha=0.35, linewidth=6, solid_capstyle="butt")
    middle.set_ylabel("throughput, candidate / baseline\nabove 1: faster")

    shares = [100 * outcome.exposed[arm] for arm in ARMS]
    right.bar(range(2), shares, color=[ARM_COLOURS[arm] for arm in ARMS], width=0.6)
    right.set_xticks(range(2), list(ARMS))
    right.set_ylim(0, max(100.0 if max(shares) > 50 else 50.0, *shares))
    right.set_ylabel("% of a step that waits\nfor communication")
    right.tick_params(axis="x", labelsize=8)
    its = about["arms"][BASELINE]
    found = arms.title(
        outcome.verdict, outcome.ratio, outcome.low, outcome.high, rounds=outcome.pairs,
        what="throughput",
    )  # fmt: skip
    title(figure, f"{found} ({its['recipe']}, {ranks_text(its, about)}: {names})", 0.98)
    pairs = f"{outcome.pairs} pair{'s' * (outcome.pairs != 1)} of launches"
    note = f"How to read this: bars are the 95 % interval of {pairs}" if known else f"{pairs}: too few for an interval"
    note += "" if outcome.claim else f"; a claim of a gain takes {PAIRS_FOR_CLAIM}"
    note += ". Waits: of the rank that waits longest."
    if predicted is not None and predicted.low is not None:
        note += " Bar of the prediction: what it is made from."
    if predicted is not None and predicted.bias is not None:
        note += f"\nPale: as such predictions came out; {predicted.bias} A/Bs on record."
    note += f" The {said}." if (said := network_note(about.get("fabric", ""))) else ""
    caption(figure, about, note)
    figure.tight_layout(rect=(0, 0.09, 1, 0.98))
    return save({"ab": figure}, out)
