"""The page of trainings, one or several: loss, throughput, where the time of a step goes, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from commbench.output.answer.trained import of_breakdowns
from commbench.plots import training as plots
from commbench.report import charts, machines
from commbench.report.curve_charts import sentence
from commbench.report.page import FactList, LegendEntry, PageChart, PageColumn, PageReport, PageSection, PageTable, Spec
from commbench.run_folder import RunFolder
from commbench.train import results
from commbench.train.results import Training

_MOST_POINTS = 400  # of a line


def report(paths: Sequence[Path]) -> PageReport:
    """Return the page of run folders of trainings. Raises `CommbenchError`."""
    trainings = [results.read(path) for path in paths]
    names = results.labels(trainings)
    throughput, loss = plots.throughputs_title(trainings, names), plots.losses_title(trainings)
    made = PageReport(
        kind="training",
        name=", ".join(one.run_id for one in trainings),
        answer=[throughput, loss],
        about=machines.about(trainings[0].about),
    )
    colours = [plots.RUN_COLOURS[index % len(plots.RUN_COLOURS)] for index in range(len(trainings))]
    legend = [LegendEntry(label=name, colour=colour) for name, colour in zip(names, colours, strict=True)]
    made.sections.append(
        PageSection(
            title="Loss and throughput",
            blocks=[
                PageChart(
                    title=loss,
                    legend=legend,
                    panels=[_line(trainings, names, "loss", 1 / plots.BITS, "bits a byte", legend)],
                    says="The median of the steps around each step.",
                ),
                PageChart(
                    title=throughput,
                    legend=legend,
                    panels=[_line(trainings, names, "tokens_per_s", 1.0, "tokens per second", legend)],
                    says="The median of the steps around each step, without those under a profiler.",
                ),
            ],
        )
    )
    if chart := _breakdown(trainings, names):
        made.sections.append(PageSection(title="Where the time of a step goes", blocks=[chart]))
    made.sections.append(PageSection(title="Steps", blocks=[_table(trainings, names)], folded=True))
    for one, path in zip(trainings, paths, strict=True):
        which = f" ({one.run_id})" if len(trainings) > 1 else ""
        facts = [(key, str(value)) for key, value in one.config.items() if value is not None]
        made.sections.append(PageSection(title=f"Settings{which}", blocks=[FactList(items=facts)], folded=True))
        made.sections += machines.sections(RunFolder(path), named=len(trainings) > 1)
    made.sections.append(PageSection(title="Do it again", blocks=[machines.command(RunFolder(path)) for path in paths]))
    return made


def _line(
    trainings: Sequence[Training],
    names: Sequence[str],
    key: str,
    factor: float,
    title: str,
    legend: Sequence[LegendEntry],
) -> Spec:
    points = []
    for one, name in zip(trainings, names, strict=True):
        steps = [line for line in one.steps if not (key == "tokens_per_s" and line.get("profiled"))]
        values = plots.running(np.array([line[key] for line in steps], dtype=float) * factor) if steps else []
        every = max(1, -(-len(steps) // _MOST_POINTS))
        for line, value in list(zip(steps, values, strict=True))[::every]:
            text = f"{value:.4g} at step {line['step']}"
            points.append({"series": name, "x": line["step"], "y": round(float(value), 5), "text": text})
    return charts.lines(points, legend, title, of_sizes=False, x_title="step", log=False, height=260)


def _breakdown(trainings: Sequence[Training], names: Sequence[str]) -> PageChart | None:
    known = [(name, *plots.mean_step(one)) for one, name in zip(trainings, names, strict=True) if one.breakdown]
    if not known:
        return None
    shown = [part for part in plots.PARTS if any(took.get(part) for _, _, took in known)]
    legend = [
        LegendEntry(label=part, colour="#c9ced6" if part == "idle" else plots.PARTS[part][0], area=True)
        for part in shown
    ]
    parts = [
        {"bar": name, "series": part, "x": took[part], "text": f"{took[part]:.3g} ms, {100 * took[part] / step:.0f} %"}
        for name, step, took in known
        for part in shown
        if took.get(part)
    ]
    spec = charts.bars(parts, legend, "milliseconds of a step", order=[name for name, _, _ in known])
    shares = [{part: 100 * value / step for part, value in took.items() if value} for _, step, took in known]
    says = sentence("Mean of steps of rank 0 under torch.profiler, which slows them.")
    return PageChart(title=of_breakdowns(shares), panels=[spec], legend=legend, says=says)


def _table(trainings: Sequence[Training], names: Sequence[str]) -> PageTable:
    lines = [(name, line) for one, name in zip(trainings, names, strict=True) for line in one.steps]
    keys = [
        key
        for key in ("step", "loss", "val_bits_per_byte", "tokens_per_s", "mfu", "exposed_comm_us", "exposed_moe_us")
        if any(line.get(key) is not None for _, line in lines)
    ]
    columns = [PageColumn(name="run", values=[name for name, _ in lines])] if len(trainings) > 1 else []
    for key in keys:
        values = [line.get(key) for _, line in lines]
        columns.append(
            PageColumn(name=key, values=[v if v is None or isinstance(v, int) else float(f"{v:.5g}") for v in values])
        )
    return PageTable(columns=columns, name="steps")
