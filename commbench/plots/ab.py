"""A/B of a training: throughput of both arms round by round, and where their steps wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from commbench.plots import save
from commbench.plots.style import caption, title
from commbench.records import network_note
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.train.ab import ARMS, BASELINE, Launched, Outcome
from commbench.train.results import ranks_text

_COLOURS = {"baseline": "#777777", "candidate": "#0072B2"}


def draw(launches: Sequence[Launched], outcome: Outcome, about: Mapping[str, Any], names: str, out: Path) -> list[Path]:
    """Draw both arms as PNG and SVG into `out`; return the PNG. `about`: of `ab.json`; `names`: how the arms differ."""
    predicted: float | None = about["predicted"]
    figure = Figure(figsize=(9, 4.3))
    left, middle, right = figure.subplots(1, 3, width_ratios=(3, 1.2, 1.2))
    for arm in ARMS:
        mine = sorted((one for one in launches if one.arm == arm), key=lambda one: one.round)
        left.plot([one.round + 1 for one in mine], [one.tokens_per_s for one in mine], "o-", color=_COLOURS[arm],
                  markersize=4, linewidth=1, label=arm)  # fmt: skip
    left.set_ylim(0, 1.1 * max(one.tokens_per_s for one in launches))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.set_xlim(0.5, max(one.round for one in launches) + 1.5)  # one round has an axis too
    left.set_xlabel("round")
    left.set_ylabel("tokens per second, median step")
    left.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    left.legend(frameon=False, fontsize=8, ncols=2, loc="lower left")

    known = outcome.low is not None and outcome.high is not None
    spread = [[outcome.ratio - (outcome.low or 0)], [(outcome.high or 0) - outcome.ratio]] if known else None
    middle.errorbar([0], [outcome.ratio], yerr=spread, fmt="o", color=_COLOURS["candidate"], capsize=4)
    middle.axhline(1, color="#444444", linewidth=1)
    if predicted is not None:
        middle.plot([1], [predicted], "x", color="#D55E00")
    middle.set_xticks(
        [0, 1] if predicted is not None else [0], ["measured", "predicted"][: 1 + (predicted is not None)]
    )
    middle.set_xlim(-0.6, 1.6 if predicted is not None else 0.6)
    middle.set_ylabel("throughput, candidate / baseline\nabove 1: faster")
    middle.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    middle.margins(y=0.3)

    shares = [100 * outcome.exposed[arm] for arm in ARMS]
    right.bar(range(2), shares, color=[_COLOURS[arm] for arm in ARMS], width=0.6)
    right.set_xticks(range(2), list(ARMS))
    right.set_ylim(0, max(100.0 if max(shares) > 50 else 50.0, *shares))
    right.set_ylabel("% of a step that waits\nfor communication")
    for axes in (middle, right):
        axes.tick_params(axis="x", labelsize=8)
    its = about["arms"][BASELINE]
    title(figure, f"{its['recipe']}, {ranks_text(its, about)}: {names}", 0.98)
    pairs = f"{outcome.pairs} pair{'s' * (outcome.pairs != 1)} of launches"
    note = f"Bar: 95 % interval of {pairs}" if known else f"{pairs}: too few for an interval"
    note += "" if outcome.claim else f"; a claim of a gain takes {PAIRS_FOR_CLAIM}"
    note += ". Waits: of the rank that waits longest."
    note += f" The {said}." if (said := network_note(about.get("fabric", ""))) else ""
    caption(figure, about, note)
    figure.tight_layout(rect=(0, 0.09, 1, 0.98))
    return save({"ab": figure}, out)
