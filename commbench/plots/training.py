"""Trainings: loss and throughput by step, and where the time of a step goes; one line or bar for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from commbench.output.answer import trained
from commbench.output.answer.trained import digits
from commbench.plots import save
from commbench.plots.style import MARKERS, caption, title
from commbench.train.results import Training, labels, ranks_text

# Okabe and Ito's, as in style.py. In grey, markers and dashes separate runs.
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C6D31")
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), "-.")
# In the order of a bar: colour and hatching. Neighbours differ in lightness; what only moves data is hatched.
PARTS: dict[str, tuple[str, str]] = {
    "attention": ("#0072B2", ""),
    "ffn": ("#9BD0EE", ""),
    "gate": ("#7A5195", ""),
    "dispatch": ("#F0E08A", "//"),
    "a2a": ("#D55E00", ""),
    "experts": ("#8FD3B8", ""),
    "combine": ("#B59B2B", "\\\\"),
    "communication": ("#F5B58A", "//"),
    "gradients": ("#A6323A", ""),
    "optimiser": ("#E3A9CB", ""),
    "other": ("#8A8A8A", ""),
    "idle": ("#FFFFFF", ".."),
}
_DARK = {"attention", "gate", "a2a", "gradients", "other", "combine"}  # on which white letters are read
_LETTERS = 13.6  # of 7.5 points, in an inch
_WIDTH, _BESIDE, _PER_LETTER = 9, 0.7, 0.065  # inches: the figure, what is beside a bar, a letter of its label
_LONGEST_LABEL = 34
BITS = math.log(2)


def draw(trainings: Sequence[Training], out: Path, *, prefix: str = "") -> list[Path]:
    """Draw every figure that the runs allow, as PNG and SVG into `out`. Return the PNG files."""
    names = labels(trainings)
    figures = {"loss": _loss(trainings, names), "throughput": _throughput(trainings, names)}
    profiled = [(one, name) for one, name in zip(trainings, names, strict=True) if one.breakdown]
    if profiled:
        figures["breakdown"] = _breakdown([one for one, _ in profiled], [name for _, name in profiled])
    return save(figures, out, prefix)


def _loss(trainings: Sequence[Training], names: Sequence[str]) -> Figure:
    figure = Figure(figsize=(_WIDTH, 4.4))
    axes = figure.subplots()
    for index, (one, name) in enumerate(zip(trainings, names, strict=True)):
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        x, y = _column(one, "step"), _column(one, "loss") / BITS
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(x, running(y), color=colour, linewidth=1.6, linestyle=_DASHES[index % len(_DASHES)], label=name)
        held = [
            (line["step"], line["val_bits_per_byte"]) for line in one.steps if line["val_bits_per_byte"] is not None
        ]
        if held:
            axes.plot(*zip(*held, strict=True), linestyle="none", marker=MARKERS[index % len(MARKERS)], markersize=6,
                      markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.5,
                      label="held out" if len(trainings) == 1 else None)  # fmt: skip
    entropies = sorted({round(float(one.about["entropy"]), 4) for one in trainings if one.about.get("entropy")})
    for number, entropy in enumerate(entropies):
        axes.axhline(entropy, color="#444444", linewidth=1, linestyle=(0, (4, 3)),
                     label="unigram entropy of the text" if number == 0 else None)  # fmt: skip
    _axes(axes, "bits a byte")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    _legend(axes)
    points = "points: held-out text" if len(trainings) > 1 else "points: text that it does not learn from"
    _finish(figure, trainings, losses_title(trainings), f"Thin: each step; thick: median of steps around it; {points}.")
    return figure


def _throughput(trainings: Sequence[Training], names: Sequence[str]) -> Figure:
    known = any(line["mfu"] is not None for one in trainings for line in one.steps)
    figure = Figure(figsize=(_WIDTH, 6.2 if known else 4.4))
    panels = figure.subplots(2 if known else 1, 1, squeeze=False, sharex=True)[:, 0]
    left_out = sum(bool(line.get("profiled")) for one in trainings for line in one.steps)
    for axes, key, factor in zip(panels, ("tokens_per_s", "mfu"), (1.0, 100.0), strict=False):
        for index, (one, name) in enumerate(zip(trainings, names, strict=True)):
            lines = [line for line in one.steps if not line.get("profiled") and line[key] is not None]
            if not lines:
                continue
            x, y = np.array([line["step"] for line in lines]), np.array([factor * line[key] for line in lines])
            colour = RUN_COLOURS[index % len(RUN_COLOURS)]
            axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
            axes.plot(x, running(y), color=colour, linewidth=1.6, linestyle=_DASHES[index % len(_DASHES)],
                      label=f"{name}: median {digits(float(np.median(y)))}{' %' if key == 'mfu' else ''}")  # fmt: skip
        _axes(axes, "tokens per second" if key == "tokens_per_s" else "mfu, % of peak")
        axes.set_ylim(bottom=0)
        _legend(axes)
    panels[-1].set_xlabel("step")
    without = f"; without {left_out} steps under the profiler" if left_out else ""
    _finish(
        figure,
        trainings,
        throughputs_title(trainings, names),
        f"Thin: each step; thick: median of steps around it{without}.",
    )
    return figure


def _breakdown(trainings: Sequence[Training], names: Sequence[str]) -> Figure:
    height = 2.05 + 0.75 * len(trainings)
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.subplots()
    means = [mean_step(one) for one in trainings]
    widest = 1.17 * max(max(step, sum(took.values())) for step, took in means)
    rows = [_cut(name) for name in names]
    room = _LETTERS * (_WIDTH - _BESIDE - _PER_LETTER * max(len(line) for row in rows for line in row.split("\n")))
    for row, (step, took) in enumerate(means):
        at = 0.0
        for part, (colour, hatch) in PARTS.items():
            value = took.get(part, 0.0)
            if not value:
                continue
            axes.barh(row, value, left=at, height=0.62, color=colour, hatch=hatch, edgecolor="#333333", linewidth=0.5)
            text = _inside(part, value, step, room * value / widest)
            if text:
                axes.text(at + value / 2, row, text, ha="center", va="center", fontsize=7.5, linespacing=1.15,
                          color="white" if part in _DARK else "black",
                          bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8} if hatch else None)  # fmt: skip
            at += value
        axes.plot([step, step], [row - 0.4, row + 0.4], color="black", linewidth=1.4)
        axes.text(max(at, step) + 0.007 * widest, row, f"step {digits(step)} ms", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), rows, fontsize=8)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(0, widest)
    axes.set_xlabel("milliseconds of a step")
    axes.grid(True, axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    shown = [part for part in PARTS if any(took.get(part) for _, took in means)]
    figure.legend(handles=[_key(part, means) for part in shown], loc="upper center", ncols=6, frameon=False,
                  bbox_to_anchor=(0.5, 1 - 0.32 / height), fontsize=8, handlelength=1.6, columnspacing=1.2)  # fmt: skip
    devices = {line["device"] for one in trainings for line in one.breakdown}
    counts = "/".join(map(str, dict.fromkeys(len(one.breakdown) for one in trainings)))
    note = f"Mean of steps of rank 0 under torch.profiler, which slows them: {counts}. Black mark: the step."
    if "cuda" in devices:
        note += "\nTime of kernels, by what launched them; where two streams overlap a bar is longer than the step."
    shares = [{part: 100 * value / step for part, value in took.items() if value} for step, took in means]
    _finish(figure, trainings, trained.of_breakdowns(shares), note, legend=0.46)
    return figure


def losses_title(trainings: Sequence[Training]) -> str:
    """Return what the thick lines show: of several at the last step that all of them have."""
    curves = [running(_column(one, "loss") / BITS) for one in trainings]
    if len(trainings) == 1:
        steps = trainings[0].steps
        held = [line["val_bits_per_byte"] for line in steps if line["val_bits_per_byte"] is not None]
        return trained.of_losses(curves[0][0], curves[0][-1], len(steps), held[-1] if held else None)
    shared = set.intersection(*({line["step"] for line in one.steps} for one in trainings))
    if not shared:
        return "Loss: no step that all runs have"
    step = max(shared)
    places = [[line["step"] for line in one.steps].index(step) for one in trainings]
    return trained.of_several_losses([curve[place] for curve, place in zip(curves, places, strict=True)], step)


def throughputs_title(trainings: Sequence[Training], names: Sequence[str]) -> str:
    medians = {name: rate for one, name in zip(trainings, names, strict=True) if (rate := _median(one, "tokens_per_s"))}
    mfu = _median(trainings[0], "mfu") if len(trainings) == 1 else None
    return (
        trained.of_throughputs(medians, 100 * mfu if mfu else None)
        if medians
        else "Throughput: every step was profiled"
    )


def _median(one: Training, key: str) -> float | None:
    """Return the median of steps that no profiler slowed; None where there is none."""
    values = [line[key] for line in one.steps if not line.get("profiled") and line[key] is not None]
    return float(np.median(values)) if values else None


def mean_step(one: Training) -> tuple[float, dict[str, float]]:
    """Return milliseconds of a step, and of each part."""
    count = len(one.breakdown)
    took: dict[str, float] = {}
    for line in one.breakdown:
        for part, value in line["parts"].items():
            part = part if part in PARTS else "other"
            took[part] = took.get(part, 0.0) + value / 1e3 / count
    return sum(line["step_us"] for line in one.breakdown) / 1e3 / count, took


def _inside(part: str, value: float, step: float, room: float) -> str:
    """Return what fits into a piece of a bar of so many letters: name, time and share, or less, or nothing."""
    share = f"{100 * value / step:.0f} %"
    lines = [part, f"{digits(value)} ms", share]
    if max(map(len, lines)) <= room:
        return "\n".join(lines)
    if max(map(len, lines[1:])) <= room:
        return "\n".join(lines[1:])
    return share if len(share) <= room else ""


def _key(part: str, means: Sequence[tuple[float, dict[str, float]]]) -> Patch:
    colour, hatch = PARTS[part]
    label = part
    if len(means) == 1:
        took = means[0][1]
        label += f" {digits(took[part])} ms"
    return Patch(facecolor=colour, hatch=hatch, edgecolor="#333333", linewidth=0.5, label=label)


def _column(one: Training, key: str) -> Any:
    return np.array([line[key] for line in one.steps], dtype=float)


def running(values: Any) -> Any:
    """Return the median of up to 2 k + 1 values around each."""
    k = max(2, min(25, len(values) // 40))
    return np.array([np.median(values[max(0, at - k) : at + k + 1]) for at in range(len(values))])


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else "\n".join(name.split(" "))


def _axes(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, loc="best", framealpha=0.85, edgecolor="none")


def _finish(figure: Figure, trainings: Sequence[Training], what: str, note: str, *, legend: float = 0.0) -> None:
    """Write title and caption, and make room for both. what: they show; legend: inches below the title."""
    one, height = trainings[0], figure.get_figheight()
    note = f"How to read this: {note[0].lower()}{note[1:]}"
    recipes = {training.config["recipe"] for training in trainings}
    of = f"{one.config['recipe']}, {ranks_text(one.config, one.about)}"
    if len(trainings) > 1:
        of = f"{len(trainings)} runs" + (f" of {one.config['recipe']}" if len(recipes) == 1 else "")
    above = title(figure, f"{what} ({of})", 1 - 0.08 / height)
    machines = dict.fromkeys(training.about["machine_text"] for training in trainings)
    caption(figure, {**one.about, "machine_text": " / ".join(machines)}, note)
    figure.tight_layout(rect=(0, (0.29 + 0.13 * len(note.split("\n"))) / height, 1, 1 - (legend + above) / height))
