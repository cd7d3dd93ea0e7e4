"""The page of a program's trace: what each exchange takes of a step, the steps, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from commbench.output.answer import traced, words
from commbench.record import folder
from commbench.record.describe import duration, percent, rows
from commbench.record.exchanges import TracedExchange, exchanges
from commbench.record.trace import ProgramTrace
from commbench.report import charts
from commbench.report.machines import typed
from commbench.report.page import (
    CommandLine,
    FactList,
    LegendEntry,
    PageChart,
    PageColumn,
    PageReport,
    PageSection,
    PageTable,
)

_MOST_BARS, _MOST_LINES, _MOST_POINTS = 16, 8, 400
_LEGEND = [
    LegendEntry(label="waited for", colour="#D55E00", area=True),
    LegendEntry(label="waited for ranks that come later", colour="#F5B58A", area=True),
    LegendEntry(label="hidden behind work", colour="#56B4E9", area=True),
]
_RANKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C6D31")


def report(path: Path) -> PageReport:
    """Return the page of a trace. Raises `CommbenchError`."""
    trace = folder.read(path)
    found = exchanges(trace)
    answer = traced.answer(trace, found, path)
    nodes, per_node = trace.layout()
    about = [f"{nodes} x {per_node} ranks over {trace.transport}", trace.gpu, trace.created[:16].replace("T", " ")]
    made = PageReport(
        kind="trace",
        name=path.resolve().name,
        answer=[words.begun(answer.sentences[0]), *answer.sentences[1:]],
        next=answer.step,
        command=answer.command,
        about=[text for text in about if text],
    )
    if chart := _bars(trace, found):
        made.sections.append(PageSection(title="What a step waits for", blocks=[chart]))
    if chart := _steps(trace):
        made.sections.append(PageSection(title="Steps", blocks=[chart]))
    if lines := rows(found):
        names = list(lines[0])
        made.sections.append(
            PageSection(
                title="Exchanges",
                blocks=[
                    PageTable(
                        columns=[
                            PageColumn(name=name, values=[_cell(line.get(name)) for line in lines]) for name in names
                        ],
                        name="exchanges",
                    )
                ],
            )
        )
    facts = [
        ("ranks", str(trace.ranks)),
        ("status", trace.status),
        *trace.versions.items(),
        *((key, str(value)) for key, value in trace.fabric.items()),
    ]
    hosts = list(dict.fromkeys(trace.hosts))
    facts.append(("hosts", words.listed(hosts[:16]) + (f" and {len(hosts) - 16} more" if len(hosts) > 16 else "")))
    made.sections.append(PageSection(title="What ran where", blocks=[FactList(items=facts)], folded=True))
    again = ["commbench", "record", "--out", str(path), "--", *trace.command]
    made.sections.append(PageSection(title="Do it again", blocks=[CommandLine(text=typed(again))]))
    return made


def _bars(trace: ProgramTrace, found: list[TracedExchange]) -> PageChart | None:
    shown = [one for one in found if one.exposed_us is not None or one.time_us is not None][:_MOST_BARS]
    step = trace.step_us()
    if not shown:
        return None
    values, order = [], []
    for number, one in enumerate(shown, 1):
        bar = f"{number}. {one.collective} {one.site}".strip()
        order.append(bar)
        exposed = one.exposed_us or 0.0
        late = min(exposed, one.late_us or 0.0)
        parts = [exposed - late, late, max(0.0, one.time_us - exposed) if one.time_us is not None else 0.0]
        for entry, us in zip(_LEGEND, parts, strict=True):
            text = duration(us) + (f", {percent(us, step)}" if step else "")
            values.append({"bar": bar, "series": entry.label, "x": us * (100 / step if step else 1e-3), "text": text})
    spec = charts.bars(values, _LEGEND, "% of a step" if step else "ms, of the whole run", order=order)
    title = words.begun(traced.sentences(trace, found)[0])
    return PageChart(title=title, panels=[spec], legend=_LEGEND, says="Means over the ranks that take part.")


def _steps(trace: ProgramTrace) -> PageChart | None:
    ranks = sorted({one.rank for one in trace.steps})[:_MOST_LINES]
    points = []
    for rank in ranks:
        mine = sorted((one for one in trace.steps if one.rank == rank and one.step > 0), key=lambda one: one.step)
        for one in mine[:: max(1, -(-len(mine) // _MOST_POINTS))]:
            ms = one.duration_us / 1e3
            points.append({"series": f"rank {rank}", "x": one.step, "y": ms, "text": f"{ms:.4g} ms, step {one.step}"})
    if not points:
        return None
    legend = [LegendEntry(label=f"rank {rank}", colour=_RANKS[number]) for number, rank in enumerate(ranks)]
    spec = charts.lines(points, legend, "ms", of_sizes=False, x_title="step", log=False, height=220)
    return PageChart(title="Time of each step", panels=[spec], legend=legend)


def _cell(value: object) -> str | float | int | None:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value if value is None or isinstance(value, int | str) else str(value)
